"""Distances of distributions against SciPy, plain loops and laws."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import iqr, wasserstein_distance
from torch import nn

from kit import varied_networks as nets
from kit.empty_steps import EMPTY_STEPS
from normscope.probes import DistributionShift, Recorder

pytestmark = EMPTY_STEPS


@pytest.mark.parametrize("net", ["mlp", "dropout", "cnn", "residual"])
def test_the_way_of_each_unit_is_scipys(net):
    model = nets.make(net, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    fixed = next(nets.batches(net, 1, size=40, seed=7, dtype=torch.float64))
    scope = Recorder(model, nets.loss_fn, optimizer, [DistributionShift(fixed, sample=10**6)], every=1)
    outputs, streams = [], None
    for batch in nets.batches(net, 3, dtype=torch.float64):
        twin, seen = copy.deepcopy(model), {}
        for name, module in twin.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.modules.batchnorm._BatchNorm)):
                module.register_forward_hook(lambda _m, _i, y, n=name, s=seen: s.update({n: y.detach().clone()}))
        now, streams = torch.get_rng_state(), torch.get_rng_state() if streams is None else streams
        torch.set_rng_state(streams)  # the masks of the first reading
        twin(fixed[0])
        torch.set_rng_state(now)
        outputs.append({name: y.movedim(1, 0).flatten(1).numpy() for name, y in seen.items()})
        with scope.step(batch):
            optimizer.zero_grad()
            nets.loss_fn(model, batch).backward()
            optimizer.step()
    found = {(r.step, r.site, r.name): r.value for r in scope.drain()}
    assert {site for _, site, _ in found} == set(outputs[0])
    for site in outputs[0]:
        values = [output[site] for output in outputs]
        scale = np.mean([iqr(value, axis=1).mean() for value in values])

        def apart(a, b):
            return np.mean([wasserstein_distance(p, q) for p, q in zip(a, b, strict=True)])

        steps = [apart(a, b) for a, b in pairwise(values)]
        assert found[2, site, "shift"] == pytest.approx(steps[1] / scale, rel=1e-9)
        assert found[2, site, "path_length"] == pytest.approx(sum(steps) / scale, rel=1e-9)
        assert found[2, site, "displacement"] == pytest.approx(apart(values[0], values[2]) / scale, rel=1e-9)
        first, last = ((v - v.mean(1, keepdims=True)) / v.std(1, keepdims=True) for v in (values[0], values[2]))
        assert found[2, site, "shape_displacement"] == pytest.approx(apart(first, last), rel=1e-9)
        drift = np.abs(values[2].mean(1) - values[0].mean(1)).mean() / scale
        assert found[2, site, "mean_drift"] == pytest.approx(drift, rel=1e-9)
        widening = np.abs(values[2].std(1) - values[0].std(1)).mean() / scale
        assert found[2, site, "std_drift"] == pytest.approx(widening, rel=1e-9)
        assert (0, site, "shift") not in found
        assert found[0, site, "path_length"] == 0 == found[0, site, "displacement"]
        assert found[2, site, "displacement"] <= found[2, site, "path_length"] * (1 + 1e-12)


def test_a_moved_and_a_stretched_normal_are_as_far_as_the_law_says():
    """W1 of N(m, 1) and N(0, 1) is m; of N(0, s^2) and N(0, 1) it is (s - 1) sqrt(2/pi)."""
    model = nn.Sequential(nn.BatchNorm1d(50))
    x = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0))
    scope = Recorder(model, lambda m, b: m(b).sum(), None, [DistributionShift(sample=5000)], every=1)
    for weight, bias in ((1, 0), (1, 0.7), (3, 0)):
        nn.init.constant_(model[0].weight, weight)
        nn.init.constant_(model[0].bias, bias)
        with scope.step(x):
            model(x)
    found = {(r.step, r.name): r.value for r in scope.drain()}
    quartiles = 2 * 0.6745
    assert found[1, "displacement"] == pytest.approx(0.7 / quartiles, rel=0.03)
    stretched = 2 * math.sqrt(2 / math.pi)
    assert found[2, "displacement"] == pytest.approx(stretched / (quartiles * 5 / 3), rel=0.03)
    assert found[2, "path_length"] > found[2, "displacement"] + 0.1
    assert found[2, "shape_displacement"] < 1e-4  # a norm's gain and shift change no shape
    assert found[1, "mean_drift"] == pytest.approx(0.7 / quartiles, rel=0.03)


def test_the_first_batch_is_kept_as_it_was():
    model, (first, second) = nets.make("mlp"), nets.batches("mlp", 2)
    scope = Recorder(model, nets.loss_fn, None, [DistributionShift()], every=1)
    with scope.step(first):
        pass
    first[0].zero_()
    with scope.step(second):
        pass
    assert {record.value for record in scope.drain() if record.name in ("path_length", "shape_displacement")} == {0.0}


def test_a_sample_of_positions_is_bounded_and_near():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    x = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for sample in (4096, 10**6):
        torch.manual_seed(0)
        model[0].reset_parameters()
        scope = Recorder(model, lambda m, b: m(b).sum(), None, [DistributionShift(sample=sample)], every=1)
        for _ in range(2):
            with scope.step(x):
                pass
            nn.init.ones_(model[0].weight)
        results.append({r.name: r.value for r in scope.drain() if r.step == 1})
    assert results[0] == pytest.approx(results[1], rel=0.15, abs=0.05)
