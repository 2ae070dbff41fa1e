"""Options: shown, refused where they cannot be, kept by copies, and the activations among them."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from torch import nn

from kit.batch_norms import F64, OPTIONS, batches, copied_buffers, drawn_batch_norm
from normscope import layers
from normscope._errors import UsageError
from normscope.layers.options import NAMES, BatchNormKeywords
from normscope.ops.sets import Renorm

ROOT = Path(__file__).parents[2]


def test_options_are_by_keyword_and_shown():
    with pytest.raises(TypeError):
        layers.BatchNorm1d(3, 1e-5, 0.1, True, True, None, None, "relu")
    layer = layers.BatchNorm2d(3, activation="leaky_relu", inplace=True, accumulate=4, on_bad_update="warn")
    assert repr(layer).endswith(
        "activation='leaky_relu', negative_slope=0.01, inplace=True, accumulate=4, on_bad_update='warn')"
    )


@pytest.mark.parametrize("kind", [layers.BatchNorm1d, layers.BatchNorm2d, layers.LazyBatchNorm3d])
def test_an_option_that_there_is_not_is_refused_in_the_name_of_the_public_class(kind):
    given = () if kind is layers.LazyBatchNorm3d else (3,)
    for error in (TypeError, UsageError):  # as Python raises it, and as all errors of the package
        with pytest.raises(error, match=f"^{kind.__name__} has no option 'activaton': did you mean activation"):
            kind(*given, activaton="relu")
    with pytest.raises(UsageError, match="its options are activation, "):
        kind(*given, qqq=1)


def test_type_checkers_and_the_program_know_the_same_options():
    declared = get_type_hints(layers.BatchNormOptions)
    assert get_type_hints(BatchNormKeywords) == {name: declared[name] for name in NAMES}


@pytest.mark.long
def test_a_misspelt_option_fails_in_a_type_checker(tmp_path):
    written = tmp_path / "written.py"
    imported = "from normscope.layers import BatchNorm2d, LazyBatchNorm1d\n"
    lines = {
        'BatchNorm2d(3, activation="relu", accumulate=2)\n': None,
        'BatchNorm2d(3, activaton="relu")\n': "activaton",
        'BatchNorm2d(3, statistics="layer")\n': "statistics",
        "LazyBatchNorm1d(inplce=True)\n": "inplce",
    }
    written.write_text(imported + "".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "--follow-imports=silent", written]
    where = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=where).stdout
    errors = {int(line.split(":")[1]): line for line in said.splitlines() if "written.py:" in line and "error" in line}
    assert set(errors) == {number for number, wrong in enumerate(lines.values(), 2) if wrong}, said
    assert all(wrong in errors[number] for number, wrong in enumerate(lines.values(), 2) if wrong), said


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "gelu"},
        {"statistics": "layer"},
        {"on_bad_update": "panic"},
        {"use_running": "yes"},
        {"statistics": "ghost"},
        {"statistics": "ghost", "group_size": 0},
        {"group_size": 4},
        {"process_group": object()},
        {"renorm": Renorm()},
        {"statistics": "renorm", "track_running_stats": False},
        {"use_running": True, "track_running_stats": False},
        {"accumulate": 0},
        {"inplace": True, "activation": "relu"},
        {"inplace": True, "activation": "leaky_relu", "negative_slope": 0.0},
        {"inplace": True, "statistics": "sync"},
    ],
    ids=lambda options: " ".join(options),
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(UsageError):
        layers.BatchNorm1d(3, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_state_dict_is_torchs_and_copies_do_the_same(options):
    layer = drawn_batch_norm(**options)
    x = batches(3)
    layer(x[0])
    assert list(layer.state_dict()) == list(nn.BatchNorm1d(3).state_dict())
    plain = nn.BatchNorm1d(3, dtype=F64)
    plain.load_state_dict(layer.state_dict())
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    layer.load_state_dict(plain.state_dict())
    for data in x[1:]:
        y = layer(data)
        for twin in twins:
            assert torch.equal(twin(data), y)
            assert all(torch.equal(a, b) for a, b in zip(twin.buffers(), layer.buffers(), strict=True))
    layer.reset_parameters()
    assert layer.running_mean.abs().max() == 0
    assert not any(buffer.any() for name, buffer in layer.named_buffers() if name in ("pending", "num_batches_tracked"))


# Fused activations.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("activation", "function"), [("relu", torch.relu), ("leaky_relu", nn.functional.leaky_relu)])
def test_activations_are_what_follows(activation, function, training):
    fused, plain = drawn_batch_norm(activation=activation), drawn_batch_norm()
    plain.load_state_dict(fused.state_dict())
    x, g = batches(2)
    results = []
    for run in (fused.train(training), lambda x: function(plain.train(training)(x))):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        results.append((y, *torch.autograd.grad(y, leaf, g)))
        with torch.no_grad():
            results[-1] += (run(x),)
    torch.testing.assert_close(*results)


def test_an_activation_never_overwrites_what_is_not_its_own():
    for layer in (layers.BatchNorm1d(3, affine=False, activation="relu"), layers.BatchNorm1d(3, activation="relu")):
        for training in (True, False):
            for x in (torch.zeros(0, 3), torch.randn(4, 3)):
                leaf = x.clone().requires_grad_()
                layer.train(training)(leaf).sum().backward()
                assert torch.equal(leaf, x)


def test_inplace_overwrites_in_training_only():
    layer, plain = drawn_batch_norm(activation="leaky_relu", inplace=True), drawn_batch_norm(activation="leaky_relu")
    plain.load_state_dict(layer.state_dict())
    x = batches(1)[0].requires_grad_()
    for training in (True, False):
        h = x * 1
        y = layer.train(training)(h)
        assert (y.data_ptr() == h.data_ptr()) is training
        torch.testing.assert_close(y, plain.train(training)(x))
        torch.testing.assert_close(copied_buffers(layer), copied_buffers(plain))
