"""All or nothing: whatever is done to a model within, an exception undoes."""

import importlib

import pytest
import torch
from surgery_nets import assert_same, images, net, state
from torch import nn

from normscope import surgery
from normscope._errors import UsageError
from normscope.modules.state import traceless, transaction


def vandalise(model):
    model.train()
    model(images()).sum().backward()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
        model[1].running_var.fill_(float("nan"))
    model[3].conv1 = nn.Identity()
    model[3].bn1.register_forward_hook(lambda *_: None)
    model[1].new_attribute = 3
    model[6].bias = None
    del model[9]
    model[7].register_buffer("more", torch.ones(1))
    model[0].weight.requires_grad_(False)
    model[2].__class__ = nn.Tanh
    model.double()
    raise KeyboardInterrupt


def test_everything_comes_back():
    model = net().eval()
    handle = model[3].bn2.register_forward_hook(lambda *_: None)
    before = state(model)
    weight, pointer = model[0].weight, model[0].weight.data_ptr()
    with pytest.raises(KeyboardInterrupt), transaction(model):
        vandalise(model)
    assert_same(before, state(model))
    assert model[0].weight is weight
    assert weight.data_ptr() == pointer
    assert weight.grad is None
    handle.remove()
    assert not model[3].bn2._forward_hooks


def test_planted_defect_is_seen():
    """The comparison notices each piece of the vandalism by itself."""
    for act in (
        lambda m: m.eval(),
        lambda m: m[1].running_mean.add_(1e-7),
        lambda m: m[1].register_forward_hook(lambda *_: None),
        lambda m: m[0].weight.requires_grad_(False),
        lambda m: setattr(m, "2", nn.ReLU()),
        lambda m: setattr(m[1], "forward", None),
    ):
        model = net()
        before = state(model)
        act(model)
        with pytest.raises(AssertionError):
            assert_same(before, state(model))


def test_success_is_kept():
    model = net()
    with transaction(model):
        model[2] = nn.Tanh()
    assert type(model[2]) is nn.Tanh


def test_traceless_restores_random_state_too():
    model = net()
    torch.manual_seed(5)
    before, expected = state(model), torch.rand(3)
    torch.manual_seed(5)
    with traceless(model):
        model(images())
        torch.rand(4)
    assert_same(before, state(model))
    assert torch.equal(torch.rand(3), expected)


def test_versions_of_untouched_tensors_stand():
    """Autograd's version counters move only where values did: a graph made before still runs backward."""
    model = net()
    y = model(images())
    versions = [p._version for p in model.parameters()]
    with traceless(model):
        model.eval()(images())
    assert versions == [p._version for p in model.parameters()]
    y.sum().backward()


def test_lazy_parameters_are_refused():
    with pytest.raises(UsageError, match="no shape yet"), transaction(nn.Sequential(nn.LazyLinear(3))):
        pass


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
    model = net().eval()
    if where == "freeze.thaw":
        surgery.freeze(model, affine=True)
    before = state(model)
    file, _, name = where.partition(".")
    module = importlib.import_module(f"normscope.surgery.{file}")
    monkeypatch.setattr(module, name, fails_at(number, getattr(module, name)))
    with pytest.raises(RuntimeError, match="planted"):
        operation(model)
    assert_same(before, state(model))
