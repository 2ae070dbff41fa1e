"""Distributions of activations against NumPy."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from kit import varied_networks as nets
from kit.empty_steps import EMPTY_STEPS
from kit.readings import read
from normscope import probes
from normscope.modules.channels import coprime_stride
from normscope.probes import ActivationDistribution, Recorder

# white box: percentiles are held against NumPy on values that no network puts out.
from normscope.probes.activation_distribution import _percentiles

pytestmark = EMPTY_STEPS


def keep(outputs, name, module, inputs, output):
    outputs[name] = output.detach().numpy().copy()


@pytest.mark.parametrize("net", ["mlp", "cnn", "channels", "residual"])
def test_activation_statistics_are_numpys(net):
    model, (batch,) = nets.make(net), nets.batches(net, 1)
    outputs = {}
    bare = (nn.ReLU, nn.MaxPool2d, nn.Dropout, nn.Flatten)
    for name, module in model.named_modules():
        if next(module.children(), None) is None and not isinstance(module, bare):
            module.register_forward_hook(partial(keep, outputs, name))
    found = read(model, nets.loss_fn, batch, ActivationDistribution())
    assert {site for site, _ in found} == set(outputs)
    for site, values in outputs.items():
        wide = values.astype(np.float64)
        p15, p50, p85 = np.percentile(wide, (15, 50, 85))
        expected = {"mean": wide.mean(), "std": wide.std(), "p15": p15, "p50": p50, "p85": p85}
        for name, value in expected.items():
            assert found[site, name] == pytest.approx(value, rel=1e-5, abs=1e-5), (site, name)


class _Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def _triple(_module, _inputs, output):
    output.detach().mul_(3)


def _norm(kind):
    norm = (_Doubled if kind == "subclass" else nn.BatchNorm2d)(
        12, affine=kind != "bare", track_running_stats=kind != "bare", eps=0.5 if kind == "eps" else 1e-5
    )
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    if kind == "hook":
        norm.register_forward_hook(lambda module, inputs, output: 3 * output)
    if kind == "hook in place":
        norm.register_forward_hook(lambda module, inputs, output: output.mul_(3))
    if kind == "hook detached":
        norm.register_forward_hook(_triple)
    if kind == "own forward":
        norm.forward = lambda x: 1 - nn.BatchNorm2d.forward(norm, x)
    if kind == "frozen":
        norm.requires_grad_(False)
    return norm.double() if kind == "double" else norm.bfloat16() if kind == "half" else norm.train(kind != "eval")


_KINDS = (
    *("plain", "bare", "eps", "subclass", "hook", "hook in place", "own forward", "frozen", "double", "half", "eval"),
    *("far", "infinite", "constant", "channels last", "hook detached"),
)


@pytest.mark.parametrize("kind", _KINDS)
def test_moments_of_a_large_norm_are_those_of_what_it_returned(kind):
    torch.manual_seed(0)
    norm = _norm(kind)
    x = torch.randn(16, 12, 11, 13) * torch.linspace(0.1, 4, 12)[:, None, None] + (1e4 if kind == "far" else 0.5)
    if kind in ("infinite", "constant"):
        x[:, 3] = 2.0
    if kind == "infinite":
        x[2, 3, 4, 5] = torch.inf
    if kind == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    x = x.to(norm.weight.dtype if norm.affine else x.dtype).requires_grad_()
    outputs = {}
    norm.register_forward_hook(partial(keep_wide, outputs))
    alone, among = (_moments(norm, x, codes) for codes in ("activation_distribution", "all"))
    assert str(alone) == str(among)  # to the bit, NaN too
    y = outputs["y"]
    assert alone["mean"] == pytest.approx(y.mean(), rel=1e-6, abs=2e-6 * y.std(), nan_ok=True)
    assert alone["std"] == pytest.approx(y.std(), rel=2e-6, nan_ok=True)


def _moments(norm, x, wanted):
    streaming = [probe for probe in probes.all() if probe.STREAMING and wanted in ("all", probe.CODE)]
    recorder = Recorder(norm, None, None, streaming, every=1)
    with recorder.step(x):
        norm(x).square().mean().backward()
    records = [record for record in recorder.drain() if record.probe == "activation_distribution"]
    return {record.name: record.value for record in records if record.name in ("mean", "std")}


def keep_wide(outputs, module, inputs, output):
    outputs["y"] = output.detach().double().numpy().copy()


def test_a_large_offset_does_not_spoil_the_standard_deviation():
    x = 1e4 + torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    found = read(nn.Identity(), lambda m, b: m(b).sum(), x, ActivationDistribution(sites=[""]), block=lambda: None)
    assert found == {}
    layer = nn.BatchNorm1d(100).eval()
    found = read(layer, lambda m, b: m(b).sum(), x, ActivationDistribution())
    y = layer(x).detach().double().numpy()
    assert found["", "std"] == pytest.approx(y.std(), rel=1e-4)
    assert found["", "mean"] == pytest.approx(y.mean(), rel=1e-6)


def test_subsampled_percentiles_are_near_and_the_same_every_time():
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1))
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    runs = [read(model, lambda m, b: m(b).mean(), x, ActivationDistribution(sample=4096)) for _ in range(2)]
    assert runs[0] == runs[1]
    y = model(x).detach().numpy()
    for name, level in (("p15", 15), ("p50", 50), ("p85", 85)):
        assert runs[0]["0", name] == pytest.approx(np.percentile(y, level), abs=0.05 * float(y.std()))


@given(st.integers(2, 10**7), st.integers(2, 10**5))
def test_the_stride_meets_every_residue(count, sample):
    stride = coprime_stride(count, sample)
    assert math.gcd(stride, count) == 1
    assert -(-count // stride) <= max(sample, 1) or count <= sample


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50))
def test_percentiles_are_numpys(values):
    array = np.array(values, dtype=np.float32)
    expected = np.percentile(array.astype(np.float64), (15, 50, 85))
    twice = _percentiles([array, array[:1], array])
    assert twice[0] == twice[2] == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-9)
    assert twice[1] == [float(array[0])] * 3


def test_percentiles_keep_what_is_not_finite():
    assert all(map(math.isnan, _percentiles([np.array([1.0, math.nan])])[0]))
    assert _percentiles([np.full(4, math.inf)]) == [[math.inf] * 3]


def test_an_output_that_was_overwritten_in_place_is_read_anew():
    """The statistics of a norm's output are shared among probes, but not with the rectifier that writes into it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(inplace=True), nn.Linear(7, 4))
    x = torch.randn(22, 5)
    found = read(model, lambda net, batch: net(batch).sum(), x, ActivationDistribution(["1", "2"]))
    normed = model[1](model[0](x)).detach()
    assert found["1", "mean"] == pytest.approx(normed.mean().item(), abs=1e-6)
    assert found["2", "mean"] == pytest.approx(normed.relu().mean().item(), rel=1e-5)
    assert found["2", "mean"] > 0.1
