"""Descent and interaction against explicit Hessians, deepcopy loops and closed forms; landscapes along directions."""

import copy
import math

import curvature_twins as twins
import numpy as np
import probe_nets as nets
import pytest
import torch
from torch import nn

from normscope._errors import UsageError
from normscope.modules.rng import RngState
from normscope.probes import Descent, Interaction, LandscapeAlongGradient, Scope
from normscope.probes._hessian import drawn, generator
from normscope.probes.landscape import _direction


@pytest.mark.parametrize("lr", [0.05, 5.0])
def test_descent_is_the_plain_comparison_with_momentum(lr):
    model, batch = twins.tiny(), twins.batch_of()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=0.01)
    scope = Scope(model, nets.loss_fn, optimizer, [Descent()], every=1)
    for _ in range(3):
        before = copy.deepcopy(model)
        with scope.step(batch):
            optimizer.zero_grad()
            nets.loss_fn(model, batch).backward()
            optimizer.step()
    records = scope.drain()
    found = {record.name: record.value for record in records}
    loss, g, matrix = twins.explicit(before, batch)
    walk, theta = twins.flat_loss(before, batch)
    d = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) - theta
    after = walk(theta + d).item()
    curvature, linear = (g @ matrix @ g / (g @ g)).item(), -(g @ d).item()
    predicted = linear - (d @ matrix @ d).item() / 2
    expected = {
        "safe_step": 2 / curvature if curvature > 0 else math.inf,
        "step_to_safe": lr * curvature / 2,
        "loss": loss,
        "loss_after": after,
        "actual_decrease": loss - after,
        "raised": float(after > loss),
        "linear_decrease": linear,
        "predicted_decrease": predicted,
        "decrease_ratio": (loss - after) / predicted,
        "linear_decrease_ratio": (loss - after) / linear,
    }
    assert found == pytest.approx(expected, rel=1e-8)
    assert any(record.value for record in records if record.name == "raised") is (lr > 1)


def test_dropout_repeats_its_masks_before_and_after():
    model, (batch,) = nets.make("dropout", dtype=torch.float64), nets.batches("dropout", 1, dtype=torch.float64)
    nets.seed_all()
    streams = RngState()
    found = twins.observe(model, batch, Descent(), lr=1e-9)
    expected, _ = nets.plain_gradients(nets.make("dropout", dtype=torch.float64), batch, streams)
    assert found["", "loss"] == pytest.approx(expected, rel=1e-12)
    assert found["", "decrease_ratio"] == pytest.approx(1, rel=1e-3)
    assert found["", "raised"] == 0


class Bowl(nn.Module):
    """L = sum(a x^2) / 2."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))

    def forward(self, a):
        return (a * self.x.square()).sum() / 2


@pytest.mark.parametrize(("share", "raised"), [(0.5, 0), (0.99, 0), (1.01, 1)])
def test_on_a_quadratic_the_safe_step_is_the_edge(share, raised):
    a = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    g = a * torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    safe = (2 * (g * g).sum() / (g * a * g).sum()).item()
    found = twins.observe(Bowl(), a, Descent(), lr=share * safe, loss_fn=lambda m, b: m(b))
    assert found["", "safe_step"] == pytest.approx(safe, rel=1e-12)
    assert found["", "step_to_safe"] == pytest.approx(share, rel=1e-12)
    assert found["", "raised"] == raised
    assert found["", "decrease_ratio"] == pytest.approx(1, rel=1e-9)
    dome = twins.observe(Bowl(), -a, Descent(), lr=0.1, loss_fn=lambda m, b: m(b))
    assert dome["", "safe_step"] == math.inf
    assert dome["", "step_to_safe"] < 0


def test_without_an_update_nothing_falls_and_nothing_rises():
    found = twins.observe(twins.tiny(), twins.batch_of(), Descent(), lr=0.1, update=False)
    assert found["", "actual_decrease"] == found["", "raised"] == found["", "predicted_decrease"] == 0
    assert math.isnan(found["", "decrease_ratio"])
    assert math.isnan(twins.observe(twins.tiny(), twins.batch_of(), Descent())["", "step_to_safe"])


@pytest.mark.parametrize("probe", [Descent, Interaction])
def test_what_is_not_finite_is_recorded_so(probe):
    model, batch = twins.tiny(), twins.batch_of()
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    found = twins.observe(model, batch, probe(), lr=0.1)
    assert all(math.isnan(value) for value in found.values()), found


def test_a_loss_that_explodes_has_risen():
    model = nn.Linear(1, 1, bias=False)
    x = torch.ones(2, 1)
    found = twins.observe(model, x, Descent(), lr=1e30, loss_fn=lambda m, b: m(b).square().sum())
    assert found["", "raised"] == 1


GROUPS = {"tiny": [["0", "1"], ["3", "4"], ["6"]], "plain": [["0"], ["2"], ["4"]]}


@pytest.mark.parametrize("net", GROUPS)
def test_interaction_is_the_plain_loop_over_layers(net):
    model, batch = twins.tiny(norm=net == "tiny"), twins.batch_of()
    before = copy.deepcopy(model)
    found = twins.observe(model, batch, Interaction(), lr=0.1)
    loss, g, matrix = twins.explicit(before, batch)
    at = twins.slices(before)
    parts = []
    for group in GROUPS[net]:
        part = torch.zeros_like(g)
        for name, where in at.items():
            if name.split(".")[0] in group:
                part[where] = g[where]
        parts.append(part)
    assert torch.equal(sum(parts), g)
    blocks = torch.stack([torch.stack([a @ matrix @ b for b in parts]) for a in parts])
    cross = (blocks.sum() - blocks.trace()) / blocks.abs().sum()
    assert found["", "cross_share"] == pytest.approx(cross.item(), rel=1e-9)

    def moved(direction, alpha):
        twin = copy.deepcopy(before)
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                parameter -= alpha * direction[at[name]].view(parameter.shape)
            return nets.loss_fn(twin, batch).item() - loss

    for c in (0.01, 0.1, 0.5):
        square = (g @ g).item()
        alpha = c * loss / square
        whole, second = moved(g, alpha), alpha**2 * (g @ matrix @ g).item() / 2
        expected = {
            "remainder": abs(whole + c * loss),
            "second_order": second,
            "third_order": abs(whole + c * loss - second),
            "interaction": whole - sum(moved(part, alpha) for part in parts),
        }
        for name, value in expected.items():
            assert found["", f"{name}@c={c:g}"] == pytest.approx(value / (c * loss), rel=1e-7), name
        assert found["", f"interaction_size@c={c:g}"] == abs(found["", f"interaction@c={c:g}"])


def chain(length, product):
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(length)))
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(product ** (1 / length))
    return model


@pytest.mark.parametrize(("product", "c"), [(1.0, 0.1), (0.01, 10.0), (2.0, 0.05)])
def test_the_scalar_chain_is_known(product, c):
    """y = x w_1...w_l with w^l = product: a step that is to take c y off leaves product (1 - c / l)^l."""
    length, one = 10, torch.ones(1, 1, dtype=torch.float64)
    found = twins.observe(chain(length, product), one, Interaction((c,)), loss_fn=lambda m, b: m(b).sum())
    actual = (1 - c / length) ** length
    alone = length * (1 - c / length) - (length - 1)
    assert found["", f"remainder@c={c:g}"] == pytest.approx(abs(actual - 1 + c) / c, rel=1e-9)
    assert found["", f"second_order@c={c:g}"] == pytest.approx(c * (length - 1) / length / 2, rel=1e-9)
    assert found["", f"interaction@c={c:g}"] == pytest.approx((actual - alone) / c, rel=1e-9)
    assert found["", "cross_share"] == pytest.approx(1, rel=1e-9)  # each factor alone acts linearly


def test_behind_batch_norm_the_linear_chain_has_no_interaction():
    model = nn.Sequential(chain(6, 0.3), nn.BatchNorm1d(1, affine=False, eps=1e-14, dtype=torch.float64), chain(1, 0.7))
    x = torch.randn(16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = twins.observe(model, x, Interaction((0.1,)), loss_fn=lambda m, b: (m(b) * b).mean())
    assert found["", "remainder@c=0.1"] < 1e-8
    assert abs(found["", "interaction@c=0.1"]) < 1e-8


def test_without_decreases_only_the_share_is_taken():
    assert list(twins.observe(twins.tiny(), twins.batch_of(), Interaction(()))) == [("", "cross_share")]
    with pytest.raises(UsageError, match="positive"):
        Interaction((0.0,))


@pytest.mark.parametrize("name", ["random", "filter"])
def test_other_directions_are_as_long_as_the_gradient_and_fresh_at_each_step(name):
    model, (batch,) = nets.make("channels", dtype=torch.float64), nets.batches("channels", 1, dtype=torch.float64)
    replay = twins.replay_of(model, batch)
    with replay.opened():
        first, again, other = (_direction(replay, generator(0, step), name, 3.0) for step in (4, 4, 5))
        plain = drawn(replay, generator(0, 4))
        flat = [twins.unpadded(replay, vector) for vector in (first, again, other, plain)]
    assert flat[0].norm().item() == pytest.approx(3.0, rel=1e-12)
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])
    at, scales = twins.slices(model), []
    for key, parameter in model.named_parameters():
        own, raw = flat[0][at[key]].view(parameter.shape), flat[3][at[key]].view(parameter.shape)
        if name == "random":
            torch.testing.assert_close(own / raw, torch.full_like(own, 3 / flat[3].norm().item()))
        elif parameter.ndim < 2:
            assert not own.any()
        else:
            lengths = [tensor.flatten(1).norm(dim=1) for tensor in (own, parameter.detach(), raw)]
            scales += (lengths[0] / lengths[1]).tolist()
            turned = own.flatten(1) / lengths[0][:, None] - raw.flatten(1) / lengths[2][:, None]
            assert turned.abs().max() < 1e-12
    assert np.ptp(scales) < 1e-12 if scales else name == "random"


@pytest.mark.parametrize("name", ["random", "filter"])
def test_the_walk_along_another_direction_is_the_plain_walk(name):
    model, batch = twins.tiny(), twins.batch_of()
    before = copy.deepcopy(model)
    options = {"points": 3, "dense": (), "matchings": ("relative-step",)}
    probe = LandscapeAlongGradient(**options, directions=("gradient", name), seed=2)
    found = twins.observe(model, batch, probe, lr=0.1)
    plain = twins.observe(copy.deepcopy(before), batch, LandscapeAlongGradient(**options), lr=0.1)
    assert {key: found[key] for key in plain} == plain  # the gradient's own names and values stay
    _, g, matrix = twins.explicit(before, batch)
    walk, theta = twins.flat_loss(before, batch)
    replay = twins.replay_of(before, batch)
    with replay.opened():
        d = twins.unpadded(replay, _direction(replay, generator(2, 0), name, g.norm().item()))
    grid = np.geomspace(1e-3, 3e-2, 3) * (theta.norm() / g.norm()).item()
    losses = [walk(theta - s * d).item() for s in grid]
    assert [found["", f"s@{name}-s={k}"] for k in range(3)] == pytest.approx(grid.tolist(), rel=1e-9)
    assert [found["", f"loss@{name}-s={k}"] for k in range(3)] == pytest.approx(losses, rel=1e-9)
    assert found["", f"loss_range@{name}-relative-step"] == pytest.approx(max(losses) - min(losses), rel=1e-8)
    assert found["", f"curvature@{name}"] == pytest.approx((d @ matrix @ d / (d @ d)).item(), rel=1e-8)


def test_unknown_directions_are_refused():
    with pytest.raises(UsageError, match="no direction 'down'"):
        LandscapeAlongGradient(directions=("down",))
