"""The cases that torch ships for its own layers and its own operator, run against ours."""

import sys
import types
import unittest
import warnings

import pytest
import torch
import torch.nn.functional as F

from normscope import layers, ops

# Torch's test utilities import a package for snapshot tests at their head; none of these cases uses it.
sys.modules.setdefault("expecttest", types.SimpleNamespace(TestCase=unittest.TestCase))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal import common_methods_invocations, common_modules

KINDS = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]


def cases(name, training):
    make = getattr(common_modules, f"module_inputs_torch_nn_{name}")
    found = make(None, "cpu", torch.float64, True, training)
    # Torch asks for a bias to be left out since 2.9 or so; where it does not know of it, its cases do not either.
    return [(case.desc or str(i), case.constructor_input, case.forward_input) for i, case in enumerate(found)]


MODULES = [
    pytest.param(
        name, training, format, constructor, given, id=f"{name}-{'train' if training else 'eval'}-{desc}-{tag}"
    )
    for name in KINDS
    for training in (True, False)
    for desc, constructor, given in cases(name, training)
    for tag, format in (
        ("contiguous", None),
        ("channels-last", {4: torch.channels_last, 5: torch.channels_last_3d}.get(given.args[0].ndim)),
    )
    if tag == "contiguous" or format is not None
]


@pytest.mark.parametrize(("name", "training", "format", "constructor", "given"), MODULES)
def test_module_inputs(name, training, format, constructor, given):
    torch.manual_seed(0)
    mine, theirs = (
        getattr(room, name)(*constructor.args, **constructor.kwargs, dtype=torch.float64).train(training)
        for room in (layers, torch.nn)
    )
    for p in theirs.parameters():
        torch.nn.init.normal_(p)
    mine.load_state_dict(theirs.state_dict())
    (x,) = given.args
    x = x.detach() if format is None else x.detach().contiguous(memory_format=format)
    results = []
    for layer in (mine, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        g = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
        parameters = (leaf, *layer.parameters())
        grads = torch.autograd.grad(y, parameters, g, create_graph=True, allow_unused=True, materialize_grads=True)
        total = leaf.sum() + sum((q * q.tanh()).sum() for q in grads)
        second = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        results.append((y, *grads, *second, *layer.buffers()))
        if x.numel():
            assert y.stride() == results[0][0].stride()
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_module_error_inputs(name):
    make = common_modules.module_error_inputs_torch_nn_BatchNorm1d_2d_3d
    info = next(i for i in common_modules.module_db if i.module_cls is getattr(torch.nn, name))
    for case in make(info, "cpu", torch.float32, True, True):
        inputs = case.module_error_input
        if inputs.constructor_input.kwargs.get("eps") == 0:  # which is defined wherever the variance is not 0: allowed
            continue
        with pytest.raises(case.error_type, match="eps"):  # said at once, not at the first forward
            getattr(layers, name)(*inputs.constructor_input.args, **inputs.constructor_input.kwargs)


SAMPLES = list(common_methods_invocations.sample_inputs_batch_norm(None, "cpu", torch.float64, requires_grad=True))


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_operator_samples(index):
    sample = SAMPLES[index]
    running_mean, running_var, weight, bias = (*sample.args, None, None)[:4]
    results = []
    for mine in (True, False):
        x = sample.input.detach().clone().requires_grad_()
        buffers = [None if b is None else b.clone() for b in (running_mean, running_var)]
        parameters = [None if p is None else p.detach().clone().requires_grad_() for p in (weight, bias)]
        options = {"training": False, **sample.kwargs}
        if mine:
            y = ops.batch_norm(x, *parameters, running_mean=buffers[0], running_var=buffers[1], **options)
        else:
            y = F.batch_norm(x, *buffers, *parameters, **options)
        wanted = [p for p in (x, *parameters) if p is not None]
        grads = torch.autograd.grad(y.square().sum(), wanted, allow_unused=True, materialize_grads=True)
        results.append((y, *grads, *(b for b in buffers if b is not None)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
