"""Options: shown, refused where they cannot be, kept by copies, and the activations among them."""

import copy
import pickle

import pytest
import torch
from torch import nn

from kit.batch_norms import F64, OPTIONS, batches, copied_buffers, drawn_batch_norm
from normscope import layers
from normscope._errors import UsageError
from normscope.ops.sets import Renorm


def test_options_are_by_keyword_and_shown():
    with pytest.raises(TypeError):
        layers.BatchNorm1d(3, 1e-5, 0.1, True, True, None, None, "relu")
    layer = layers.BatchNorm2d(3, activation="leaky_relu", inplace=True, accumulate=4, on_bad_update="warn")
    assert repr(layer).endswith(
        "activation='leaky_relu', negative_slope=0.01, inplace=True, accumulate=4, on_bad_update='warn')"
    )


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
