"""All or nothing: an operation that fails midway leaves the model bit for bit as it was."""

import importlib

import pytest

from kit.small_convnets import images, small_convnet
from kit.traces import differences, fingerprint
from normscope import surgery


def trace_of(model):
    """All that can be reached from the model, but for version counters, which undoing does not turn back."""
    found = fingerprint(identities=True, model=model)
    return {path: leaf for path, leaf in found.items() if not path.endswith(" written to")}


def fails_at(number, function):
    """Return ``function``, which raises at its ``number``-th call."""
    calls = []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise RuntimeError("planted")
        return function(*args, **kwargs)

    return failing


@pytest.mark.parametrize(
    ("where", "operation"),
    [
        ("absorb.write", lambda m: surgery.fold(m.eval(), images())),
        ("absorb.write", lambda m: surgery.strip(m, "population", example=images())),
        ("strip._identity_for", lambda m: surgery.strip(m)),
        ("convert._carry", lambda m: surgery.convert(m, "group")),
        ("freeze._install", lambda m: surgery.freeze(m, affine=True)),
        ("freeze.thaw", lambda m: surgery.unfreeze(m)),
        ("recalibrate._write", lambda m: surgery.recalibrate(m, [images()], sequential=True)),
    ],
)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_operation_that_fails_midway_leaves_the_model_bit_identical(where, operation, number, monkeypatch):
    model = small_convnet().eval()
    if where == "freeze.thaw":
        surgery.freeze(model, affine=True)
    model[0](images()).sum().backward()
    before = trace_of(model)
    file, _, name = where.partition(".")  # private functions of this room: the places midway in an operation
    module = importlib.import_module(f"normscope.surgery.{file}")
    monkeypatch.setattr(module, name, fails_at(number, getattr(module, name)))
    with pytest.raises(RuntimeError, match="planted"):
        operation(model)
    assert differences(before, trace_of(model)) == []
