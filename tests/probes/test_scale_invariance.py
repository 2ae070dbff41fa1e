"""Scale invariance and its dynamics: exact orthogonality, Pythagoras, the equilibrium by simulation."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kit import varied_networks as nets
from kit.readings import by_name, read
from normscope import layers
from normscope.probes import Recorder, ScaleInvariance


def exact(module):
    for norm in module.modules():
        if hasattr(norm, "eps"):
            norm.eps = 1e-30
    return module.double()


NORMS = {
    "batch": lambda: nn.BatchNorm1d(10),
    "ours": lambda: layers.BatchNorm1d(10),
    "layer": lambda: nn.LayerNorm(10),
    "group": lambda: nn.GroupNorm(2, 10),
}


@pytest.mark.parametrize("norm", NORMS)
def test_a_weight_before_a_norm_is_orthogonal_to_its_gradient(norm):
    torch.manual_seed(0)
    bias = norm in ("batch", "ours")  # other norms do not take a bias out
    model = exact(nn.Sequential(nn.Linear(12, 10, bias=bias), NORMS[norm](), nn.Tanh(), nn.Linear(10, 4)))
    (batch,) = nets.batches("mlp", 1, dtype=torch.float64)
    found = read(model, nets.loss_fn, batch, ScaleInvariance())
    assert set(by_name(found, "radial_cosine")) == {"0"}
    assert abs(found["0", "radial_cosine"]) < 1e-12
    assert (("0", "unit_radial_cosine") in found) is bias
    if bias:
        assert found["0", "unit_radial_cosine"] < 1e-12
    last = read(model, nets.loss_fn, batch, ScaleInvariance(["0", "3"]))
    assert abs(last["3", "radial_cosine"]) > 1e-3


def test_eval_mode_and_what_lies_between_break_it():
    (batch,) = nets.batches("mlp", 1, dtype=torch.float64)
    model = exact(nets.mlp()).eval()
    assert abs(read(model, nets.loss_fn, batch, ScaleInvariance())["0", "radial_cosine"]) > 1e-4
    between = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.BatchNorm1d(10), nn.Linear(10, 4)).double()
    assert read(between, nets.loss_fn, batch, ScaleInvariance()) == {}
    in_place = nn.Sequential(nn.Linear(12, 10), nn.ReLU(inplace=True), nn.BatchNorm1d(10), nn.Linear(10, 4)).double()
    assert read(in_place, nets.loss_fn, batch, ScaleInvariance()) == {}


@pytest.mark.parametrize("net", ["mlp", "cnn"])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_values_are_those_of_a_plain_step(net, decay):
    model, (batch,) = exact(nets.make(net)), nets.batches(net, 1, dtype=torch.float64)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.3, weight_decay=decay)
    found = read(model, nets.loss_fn, batch, ScaleInvariance(), optimizer)
    sites = by_name(found, "radial_cosine")
    assert set(sites) == ({"0", "3", "6"} if net == "mlp" else {"1", "5"})
    for site in sites:
        w, new = before[f"{site}.weight"], model.get_submodule(site).weight.detach()
        g = model.get_submodule(site).weight.grad
        norm = float(w.norm())
        assert found[site, "weight_norm"] == pytest.approx(norm, rel=1e-12)
        assert found[site, "effective_lr"] == pytest.approx(0.3 / norm**2, rel=1e-12)
        cosine = float((w * new).sum() / w.norm() / new.norm())
        assert found[site, "angle"] == pytest.approx(math.acos(cosine), rel=1e-6)
        growth = float((new.norm() ** 2 - w.norm() ** 2) / (new - w).norm() ** 2)
        assert found[site, "norm_growth"] == pytest.approx(growth, rel=1e-6)
        assert (found[site, "norm_growth"] == pytest.approx(1, rel=1e-9)) is (decay == 0)
        assert ((site, "equilibrium_ratio") in found) is (decay > 0)
        if decay:
            expected = norm / (0.3 * float(g.norm()) ** 2 * norm**2 / 0.02) ** 0.25
            assert found[site, "equilibrium_ratio"] == pytest.approx(expected, rel=1e-9)


def test_a_growth_of_the_wrong_sign_is_seen():
    """Pythagoras fails for an update with the weight's own direction in it."""
    model, (batch,) = exact(nets.make("mlp")), nets.batches("mlp", 1, dtype=torch.float64)

    def block():
        nets.loss_fn(model, batch).backward()
        with torch.no_grad():
            model[0].weight.sub_(0.1 * model[0].weight.grad + 1e-3 * model[0].weight)

    assert abs(read(model, nets.loss_fn, batch, ScaleInvariance(), None, block)["0", "norm_growth"] - 1) > 0.1


class Sphere(nn.Module):
    """A weight before a norm whose gradient is noise: orthogonal, of mean square length 1 at length 1."""

    def __init__(self, size):
        super().__init__()
        self.layer, self.norm = nn.Linear(size, 1, bias=False), nn.LayerNorm(1, elementwise_affine=False)

    def forward(self, noise):
        self.norm(self.layer(noise))  # what the probe goes by
        w = self.layer.weight[0]
        return (w / w.norm()) @ noise


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_norm_and_the_rotation_settle_at_the_equilibrium(momentum):
    torch.manual_seed(0)
    size, lr, decay = 400, 0.1, 0.05
    model = Sphere(size).double()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=momentum, weight_decay=decay)
    scope = Recorder(model, lambda m, b: m(b), optimizer, [ScaleInvariance()], every=1)
    for _ in range(1000):
        noise = torch.randn(size, dtype=torch.float64) / math.sqrt(size)
        with scope.step(noise):
            optimizer.zero_grad()
            model(noise).backward()
            optimizer.step()
    records = [record for record in scope.drain() if record.step >= 500]
    for name in ("equilibrium_ratio", "angle_ratio"):
        values = [record.value for record in records if record.name == name]
        assert np.mean(values) == pytest.approx(1, rel=0.02), name


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_other_optimizers_have_no_equilibrium_but_their_rotation(kind):
    model, (batch,) = nets.make("mlp"), nets.batches("mlp", 1)
    optimizer = kind(model.parameters(), 1e-2, weight_decay=0.1)
    found = read(model, nets.loss_fn, batch, ScaleInvariance(), optimizer)
    assert found["0", "angle"] > 0
    assert ("0", "equilibrium_ratio") not in found


def test_without_an_update_there_is_no_angle_and_groups_have_their_own_rates():
    model, (batch,) = nets.make("mlp"), nets.batches("mlp", 1)
    found = read(model, nets.loss_fn, batch, ScaleInvariance())
    assert {name for site, name in found if site == "0"} == {"radial_cosine", "unit_radial_cosine", "weight_norm"}
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[3].parameters()}]
    found = read(model, nets.loss_fn, batch, ScaleInvariance(["0", "3", "6"]), torch.optim.SGD(groups, 0.1))
    for site, lr in (("0", 0.5), ("3", 0.1)):
        assert found[site, "effective_lr"] == pytest.approx(lr / found[site, "weight_norm"] ** 2)
    assert ("6", "effective_lr") not in found


@pytest.mark.parametrize("in_closure", [False, True])
def test_the_cosine_is_the_backward_passs_and_the_equilibrium_that_of_the_clipped_gradient(in_closure):
    model, batches = exact(nets.make("mlp")), nets.batches("mlp", 2, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, weight_decay=0.01)
    scope = Recorder(model, nets.loss_fn, optimizer, [ScaleInvariance()], every=1)
    weight, seen = model[0].weight, {}

    def closure():
        optimizer.zero_grad()
        nets.loss_fn(model, batch).backward()
        nn.utils.clip_grad_value_(model.parameters(), 1e-3)  # each element by itself: it turns the gradient
        seen.update(norm=weight.detach().norm().item(), used=weight.grad.norm().item())

    for batch in batches:
        with scope.step(batch):
            if not in_closure:
                closure()
            optimizer.step(closure if in_closure else None)
    found = {(r.site, r.name): r.value for r in scope.drain() if r.step == 1}
    assert abs(found["0", "radial_cosine"]) < 1e-12
    expected = seen["norm"] / (0.3 * seen["used"] ** 2 * seen["norm"] ** 2 / 0.02) ** 0.25
    assert found["0", "equilibrium_ratio"] == pytest.approx(expected, rel=1e-9)
