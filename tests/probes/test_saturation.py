"""Saturation of activations: closed forms for normal values, and plain autograd."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from kit import varied_networks as nets
from kit.readings import by_name, read
from normscope._errors import UsageError
from normscope.probes import Recorder, Saturation


def normal(*shape, scale=1.0, seed=0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on(module, x, probe=None):
    x = x.clone().requires_grad_()
    return read(nn.Sequential(nn.Identity(), module), lambda m, b: m(b * 1).sum(), x, probe or Saturation(sample=None))


# Table of the laws: P(|x| > 3), P(|tanh x| > .97), E[tanh'^2] for x of standard deviation s.
@pytest.mark.parametrize(
    ("s", "far", "near", "slope"), [(1, 0.0027, 0.0364, 0.4644), (3, 0.317, 0.486, 0.174), (10, 0.764, 0.834, 0.053)]
)
@pytest.mark.parametrize("module", [nn.Tanh(), nn.Sigmoid()])
def test_tails_of_normal_values_are_the_closed_forms(s, far, near, slope, module):
    assert 2 * norm.sf(3 / s) == pytest.approx(far, abs=6e-4)
    assert 2 * norm.sf(math.atanh(0.97) / s) == pytest.approx(near, abs=6e-4)
    x = normal(2000, 200, scale=s)
    # A sigmoid is a tanh of half its input, with a quarter of the slope.
    found = on(module, x if isinstance(module, nn.Tanh) else 2 * x)
    assert found["1", "input_tail"] == pytest.approx(2 * norm.sf(3 / s), abs=2e-3)
    assert found["1", "output_tail"] == pytest.approx(2 * norm.sf(math.atanh(0.97) / s), abs=3e-3)
    unit = 1 if isinstance(module, nn.Tanh) else 1 / 16
    assert found["1", "squared_slope"] == pytest.approx(slope * unit, rel=0.02)


def test_the_probe_distinguishes_scales_that_the_law_distinguishes():
    one, three = (on(nn.Tanh(), normal(500, 100, scale=s))["1", "input_tail"] for s in (1, 3))
    assert three > 50 * one > 0


@pytest.mark.parametrize("ratio", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("spatial", [(), (3, 4)])
def test_inactive_share_after_batch_norm_is_the_normal_law(ratio, spatial):
    kind = nn.BatchNorm2d if spatial else nn.BatchNorm1d
    model = nn.Sequential(kind(50), nn.ReLU(inplace=True))
    with torch.no_grad():
        model[0].weight.uniform_(0.5, 1.5)
        model[0].bias.copy_(ratio * model[0].weight)
    x = 3 + 5 * normal(1000, 50, *spatial)
    found = read(model, lambda m, b: m(b).sum(), x, Saturation())
    assert found["1", "inactive_share"] == pytest.approx(norm.cdf(-ratio), abs=0.01)
    assert found["1", "squared_slope"] == pytest.approx(1 - found["1", "inactive_share"], abs=1e-6)


RECTIFIERS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(0.2, inplace=True),
    nn.PReLU(),
    nn.PReLU(6),
    nn.ELU(inplace=True),
    nn.SELU(),
    nn.CELU(),
    nn.GELU(),
    nn.SiLU(inplace=True),
    nn.Mish(),
    nn.Hardswish(),
    nn.Tanh(),
    nn.Sigmoid(),
]


@pytest.mark.parametrize("module", RECTIFIERS, ids=str)
def test_squared_slope_and_shares_are_those_of_plain_autograd(module):
    x = normal(32, 6, 5, scale=3).double()
    module = module.double()
    if isinstance(module, nn.PReLU):
        nn.init.uniform_(module.weight, 0.1, 0.5)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(module(leaf * 1).sum(), leaf)
    found = on(module, x)
    assert found["1", "squared_slope"] == pytest.approx(float(slope.square().mean()), rel=1e-12)
    if not isinstance(module, (nn.Tanh, nn.Sigmoid)):
        assert found["1", "inactive_share"] == pytest.approx(float((x <= 0).double().mean()), rel=1e-12)


def test_a_subsample_is_near_the_whole():
    x = normal(64, 32, 16, 16)
    whole, part = (on(nn.SiLU(), x, Saturation(sample=sample)) for sample in (None, 8192))
    for name in ("inactive_share", "squared_slope"):
        assert part["1", name] == pytest.approx(whole["1", name], abs=0.03)
    for name in ("silent_share", "dead_share"):
        assert part["1", name] == whole["1", name]


def test_dead_units_are_those_inactive_on_all_data_seen():
    model = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
    scope = Recorder(model, lambda m, b: m(b).sum(), None, [Saturation()], every=1)
    batches = [
        torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 0.0]]),
        torch.tensor([[-1.0, 1.0, -1.0], [-1.0, 2.0, -2.0]]),
    ]
    for batch in batches:
        with scope.step(batch):
            model(batch.clone())
    values = {(r.step, r.name): r.value for r in scope.drain()}
    assert [values[step, "silent_share"] for step in (0, 1)] == pytest.approx([2 / 3, 2 / 3])
    assert [values[step, "dead_share"] for step in (0, 1)] == pytest.approx([2 / 3, 1 / 3])
    assert [values[step, "inactive_share"] for step in (0, 1)] == pytest.approx([5 / 6, 4 / 6])


def test_data_of_a_step_that_failed_were_not_seen():
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    scope = Recorder(model, lambda m, b: m(b).sum(), None, [Saturation()], every=1)
    with pytest.raises(KeyError), scope.step(None):  # noqa: PT012
        model(torch.ones(2, 3))
        raise KeyError
    with scope.step(None):
        model(-torch.ones(2, 3))
    assert by_name({(r.site, r.name): r.value for r in scope.drain()}, "dead_share") == {"1": 1.0}


def test_a_unit_of_batch_norm_must_be_dead_below_and_cannot_be_above_the_bounds_of_its_shift():
    m = 16
    model = nn.Sequential(nn.BatchNorm1d(200, eps=1e-12), nn.ReLU())
    for shift, dead in ((-1.01 * math.sqrt(m - 1), 1.0), (-0.99 / math.sqrt(m - 1), 0.0)):
        nn.init.constant_(model[0].bias, shift)
        x = normal(m, 200, scale=4) ** 3
        found = read(model, lambda m, b: m(b).sum(), x, Saturation())
        assert found["1", "silent_share"] == dead


def test_outputs_of_named_modules_are_read_for_functions_without_a_module():
    model, (batch,) = nets.make("shared"), nets.batches("shared", 1)
    seen = []
    model.inlet.register_forward_hook(lambda _m, _i, y: seen.append(y.detach().numpy()) and None)
    found = read(model, nets.loss_fn, batch, Saturation({"inlet": "tanh", "norm": "relu"}))
    assert found["inlet", "output_tail"] == pytest.approx(np.mean(np.abs(np.tanh(seen[0])) > 0.97), abs=1e-6)
    assert {name for site, name in found if site == "norm"} == {
        "inactive_share", "silent_share", "dead_share", "squared_slope"
    }  # fmt: skip


def test_nan_is_no_silent_unit_and_units_may_lie_on_the_last_axis():
    x = -torch.ones(4, 5, 3)
    x[..., 0], x[0, 0, 2] = math.nan, 1.0
    found = on(nn.ReLU(), x, Saturation(unit_axis=-1))
    assert found["1", "silent_share"] == pytest.approx(1 / 3)
    assert found["1", "inactive_share"] == pytest.approx(39 / 60)


def test_what_cannot_be_read_is_named():
    with pytest.raises(UsageError, match="no function 'gelu'"):
        Saturation({"0": "gelu"})
    with pytest.raises(UsageError, match="sample=1"):
        Saturation(sample=1)
    with pytest.warns(UserWarning, match="'0' is a Identity, no known activation"):
        on(nn.ReLU(), torch.ones(2, 2), Saturation(["0"]))


def test_one_rectifier_on_several_widths_counts_the_units_of_each():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide, self.relu = nn.Linear(4, 3), nn.Linear(3, 5), nn.ReLU()

        def forward(self, x):
            return self.relu(self.wide(self.relu(self.narrow(x))))

    torch.manual_seed(0)
    model = Shared()
    with torch.no_grad():
        model.narrow.bias.fill_(1.0)
        model.wide.bias.fill_(3.0)
        model.narrow.bias[0] = model.wide.bias[1] = -100.0  # silent
    found = read(model, lambda m, b: m(b).sum(), torch.randn(64, 4), Saturation())
    assert found["relu", "silent_share"] == pytest.approx(2 / 8)
    assert found["relu", "dead_share"] == pytest.approx(2 / 8)


@pytest.mark.parametrize("change", ["data", "in-place"])
def test_an_input_that_was_changed_since_a_layer_made_it_is_read_as_it_is(change):
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.relu = nn.Linear(3, 4), nn.ReLU()
            self.made = None

        def forward(self, x):
            h = self.linear(x)
            self.made = h.detach().clone()
            if change == "data":
                h.data = 1 - h.data  # of which torch keeps no count
            else:
                h.neg_().add_(1)
            return self.relu(h)

    torch.manual_seed(0)
    model = Changing()
    x = torch.randn(50, 3)
    # Two probes: the other reads the output of the layer.
    recorder = Recorder(model, probes=["activation_distribution", Saturation()], every=1)
    with recorder.step(x):
        model(x).mean().backward()
    values = {(record.site, record.name): record.value for record in recorder.drain()}
    assert values["linear", "mean"] == pytest.approx(float(model.made.mean()))
    assert values["relu", "inactive_share"] == pytest.approx(float((1 - model.made <= 0).float().mean()))
    assert float((model.made <= 0).float().mean()) != pytest.approx(values["relu", "inactive_share"])
