"""The gap of running statistics, and its cost, against plain copies of the model."""

import copy
import math

import pytest
import torch
from torch import nn

from kit import varied_networks as nets
from kit.empty_steps import EMPTY_STEPS
from kit.readings import by_name, read
from normscope.probes import Recorder, StatisticsGap

pytestmark = EMPTY_STEPS


@pytest.mark.parametrize("net", ["mlp", "cnn", "dropout", "residual"])
def test_gaps_are_those_of_plain_copies(net):
    model = nets.make(net, dtype=torch.float64)
    first, batch = nets.batches(net, 2, dtype=torch.float64)
    nets.loss_fn(model, first)  # moves the running statistics
    twin, seen = copy.deepcopy(model), {}
    for name, module in twin.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(lambda _m, i, name=name: seen.update({name: i[0].detach().clone()}))
    torch.manual_seed(9)
    train = nets.loss_fn(copy.deepcopy(twin), batch).item()
    held = nets.loss_fn(copy.deepcopy(twin).eval(), batch).item()
    partly = copy.deepcopy(twin)
    for module in partly.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    torch.manual_seed(9)
    only = nets.loss_fn(partly, batch).item()
    seen.clear()
    torch.manual_seed(9)
    nets.loss_fn(copy.deepcopy(twin), batch)
    torch.manual_seed(9)
    found = read(model, nets.loss_fn, batch, StatisticsGap())
    assert found["", "train_loss"] == pytest.approx(train, rel=1e-12)
    assert found["", "eval_loss"] == pytest.approx(held, rel=1e-12)
    assert found["", "eval_gap"] == pytest.approx(held - train, rel=1e-9)
    assert found["", "statistics_share"] == pytest.approx((only - train) / (held - train), rel=1e-9)
    if net in ("mlp", "cnn"):  # nothing else depends on the mode
        assert found["", "statistics_share"] == pytest.approx(1, rel=1e-12)
    assert set(by_name(found, "mean_gap")) == set(seen)
    for name, x in seen.items():
        module = twin.get_submodule(name)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        unit = (module.running_var + module.eps).sqrt()
        gap = ((x.mean(axes) - module.running_mean) / unit).square().mean().sqrt()
        scale = ((x.var(axes) + module.eps) / (module.running_var + module.eps)).log().square().mean().sqrt()
        assert found[name, "mean_gap"] == pytest.approx(float(gap), rel=1e-9)
        assert found[name, "variance_gap"] == pytest.approx(float(scale), rel=1e-9)


def test_calls_are_pooled_by_the_law_of_total_variance_and_true_statistics_have_only_noise():
    norm = nn.BatchNorm1d(2000)
    x = torch.randn(100, 2000, generator=torch.Generator().manual_seed(0))
    probe = StatisticsGap(loss=False)
    noise = {name: value for (_, name), value in read(norm, lambda m, b: m(b).sum(), x, probe).items()}
    assert noise["mean_gap"] == pytest.approx(math.sqrt(1 / 100), rel=0.05)
    assert noise["variance_gap"] == pytest.approx(math.sqrt(2 / 100), rel=0.05)
    whole, parts = (
        read(nn.BatchNorm1d(2000), lambda m, b, n=n: sum(m(part).sum() for part in b.chunk(n)), 3 + 2 * x, probe)
        for n in (1, 4)
    )
    assert parts == pytest.approx(whole, rel=1e-5)


def test_modes_are_the_users_again_for_the_probes_that_follow():
    model, (batch,) = nets.make("dropout"), nets.batches("dropout", 1)
    alone = Recorder(model, nets.loss_fn, None, ["landscape"], every=1)
    after = Recorder(model, nets.loss_fn, None, ["statistics_gap", "landscape"], every=1)
    for scope in (alone, after):
        scope.probes[-1].lr = 0.1
        torch.manual_seed(3)
        with scope.step(batch):
            pass
    assert alone.drain() == [record for record in after.drain() if record.probe == "landscape"]


def test_without_a_gap_there_is_no_share():
    model, (batch,) = nets.make("eval"), nets.batches("eval", 1)
    found = read(model, nets.loss_fn, batch, StatisticsGap())
    assert found["", "eval_gap"] == 0
    assert math.isnan(found["", "statistics_share"])


@pytest.mark.parametrize("sites", [None, ("1", "4")])
def test_without_the_losses_it_reads_the_same_sites_at_the_same_steps(sites):
    found = StatisticsGap(sites, every=5).without_loss()
    assert (found.sites, found.every, found.replays) == (sites, 5, False)
