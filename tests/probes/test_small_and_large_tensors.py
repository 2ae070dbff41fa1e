"""Small tensors are reduced together at the end of a step, large ones one by one as they pass: with one result."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normscope import probes
from normscope.modules import contents
from normscope.modules.contents import Contents
from normscope.probes import Recorder

# white box: Hessian-vector products are counted.
from normscope.probes._hessian import Hessian

STREAMING = [probe.CODE for probe in probes.all() if probe.STREAMING]


class Mixed(nn.Module):
    """Layers of several shapes and dtypes; a block called three times, others never or without gradient."""

    def __init__(self):
        super().__init__()
        self.conv, self.conv_norm = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.shrink, self.shrunk_norm = nn.Conv2d(5, 6, 4), nn.BatchNorm2d(6)
        self.shared, self.shared_norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.relu, self.tanh = nn.ReLU(inplace=True), nn.Tanh()
        self.halved, self.halved_norm = nn.Linear(6, 7).bfloat16(), nn.BatchNorm1d(7).bfloat16()
        self.doubled, self.doubled_norm = nn.Linear(7, 8).double(), nn.BatchNorm1d(8).double()
        self.plain_norm = nn.BatchNorm1d(8, affine=False, track_running_stats=False).double()
        self.frozen = nn.BatchNorm1d(8).double().eval()
        self.layer_norm, self.never = nn.LayerNorm(8).double(), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(8, 3).double()

    def forward(self, x):
        x = self.relu(self.conv_norm(self.conv(x)))
        x = self.shrunk_norm(self.shrink(x)).flatten(1)
        for _ in range(3):
            x = self.relu(self.shared_norm(self.shared(x)))
        with torch.no_grad():
            self.head(self.layer_norm(torch.zeros(len(x), 8).double()))
        x = self.halved_norm(self.halved(x.bfloat16()))
        x = self.tanh(self.doubled_norm(self.doubled(x.double())))
        return self.head(self.layer_norm(self.frozen(self.plain_norm(x))))


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def records(codes, monkeypatch, *, small, channels_last=False, sizes=(24, 19), **options):
    monkeypatch.setattr(contents, "SMALL", small)
    torch.manual_seed(0)
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    scope = Recorder(model, loss_fn, optimizer, codes, every=1, **options)
    for _ in range(2):
        with scope.step(None):
            optimizer.zero_grad()
            for size in sizes:
                x = 3 + torch.randn(size, 2, 4, 4)
                batch = x.contiguous(memory_format=torch.channels_last) if channels_last else x, torch.arange(size) % 3
                scope.micro_batch(batch)
                loss_fn(model, batch).backward()
            optimizer.step()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return {(r.step, r.probe, r.site, r.name): r.value for r in scope.drain()}, state


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_reduced_together_is_what_is_reduced_alone(monkeypatch, channels_last):
    alone, left = records(STREAMING, monkeypatch, small=0, channels_last=channels_last)
    some, _ = records(STREAMING, monkeypatch, small=200, channels_last=channels_last)
    together, also_left = records(STREAMING, monkeypatch, small=1 << 14, channels_last=channels_last)
    assert {probe for _, probe, _, _ in alone} == set(STREAMING)
    assert list(alone) == list(some) == list(together)
    for key, value in alone.items():
        assert math.isfinite(value), key
        assert together[key] == pytest.approx(value, rel=2e-4, abs=1e-6), key
        assert some[key] == pytest.approx(value, rel=2e-4, abs=1e-6), key
    assert left.keys() == also_left.keys()
    assert all(torch.equal(left[name], also_left[name]) for name in left)


@pytest.mark.parametrize("code", STREAMING)
def test_a_probe_reads_alone_what_it_reads_among_others(monkeypatch, code):
    alone = records([code], monkeypatch, small=1 << 14)[0]
    among = records(STREAMING[::-1], monkeypatch, small=1 << 14)[0]
    assert alone == {key: value for key, value in among.items() if key[1] == code}


@pytest.mark.parametrize("shape", [(9, 4), (9, 4, 1, 1), (9, 4, 5), (9, 4, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_moments_are_numpys_and_outlive_the_tensor(shape, dtype):
    torch.manual_seed(1)
    whole = Contents()
    others = [whole.add(torch.randn(9, width), None) for width in (3, 17)]
    x = (5 + torch.randn(shape)).to(dtype)
    content, copy = whole.add(x, None), whole.copied(x)
    others.append(whole.add(torch.randn(9, 2), None))
    wide = x.double().numpy().reshape(9, 4, -1).copy()
    x.zero_()
    whole.settle()
    assert (content.samples, content.channels, content.count) == (9, 4, wide[:, 0].size)
    assert content.mean == pytest.approx(wide.mean((0, 2)), rel=1e-12)
    assert content.variance == pytest.approx(wide.var((0, 2)), rel=1e-12)
    assert content.deviations.reshape(wide.shape) == pytest.approx(wide - wide.mean((0, 2))[:, None], abs=1e-12)
    assert np.array_equal(copy.array.astype(float), wide.reshape(shape))
    assert [other.channels for other in others] == [other.mean.size for other in others]


def test_a_sum_along_a_channel_does_not_depend_on_what_stands_beside_it():
    x = [torch.randn(37, width, generator=torch.Generator().manual_seed(width)) for width in (1, 3, 8, 64, 5)]
    found = []
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2]):
        whole = Contents()
        taken = {index: whole.add(x[index], None) for index in order}
        whole.settle()
        found.append((taken[2].mean, taken[2].variance, taken[2].deviations))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("affine", [True, False])
def test_sums_that_batch_norm_made_are_those_of_its_gradient(monkeypatch, affine):
    """A frozen gain has batch norm make no sums of its own: then input and gradient are read."""
    monkeypatch.setattr(contents, "SMALL", 0)
    found = []
    for frozen in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=affine), nn.Tanh(), nn.BatchNorm2d(4)
        ).double()
        with torch.no_grad():
            model[-1].weight.normal_()
        for norm in (model[1], model[3]):
            norm.requires_grad_(not frozen)
        scope = Recorder(model, lambda m, b: m(b).pow(3).mean(), None, ["batch_norm_gradient_terms"], every=1)
        x = torch.randn(6, 2, 7, 7).double()
        with scope.step(x):
            scope.loss_fn(model, x).backward()
        found.append({(r.site, r.name): r.value for r in scope.drain()})
    assert {site for site, _ in found[0]} == {"1", "3"}
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_the_product_with_the_gradient_is_taken_once_for_all(monkeypatch):
    taken = []
    product = Hessian.product
    monkeypatch.setattr(Hessian, "product", lambda self, *args, **more: taken.append(1) or product(self, *args, **more))
    landscape = probes.LandscapeAlongGradient

    def read(chosen):
        taken.clear()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scope = Recorder(model, loss_fn, optimizer, chosen, every=1)
        batch = torch.randn(12, 5), torch.arange(12) % 3
        with scope.step(batch):
            loss_fn(model, batch).backward()
            optimizer.step()
        return len(taken), {r.name: r.value for r in scope.drain() if r.probe == "landscape"}

    alone, curved = read([landscape()])
    others = read(["descent"])[0]
    both, also_curved = read(["descent", landscape()])
    assert alone == 1
    assert both == others
    assert also_curved == curved
