"""The landscape along random directions against plain walks."""

import copy

import numpy as np
import pytest
import torch

from kit import explicit_hessians as hessians, varied_networks as nets
from kit.readings import read_steps
from normscope._errors import UsageError
from normscope.probes import LandscapeAlongGradient

# white box: the drawn directions are not recorded, so they are drawn again here.
from normscope.probes._hessian import drawn, generator
from normscope.probes.landscape import _direction  # white box: see above


@pytest.mark.parametrize("name", ["random", "filter"])
def test_other_directions_are_as_long_as_the_gradient_and_fresh_at_each_step(name):
    model, (batch,) = nets.make("channels", dtype=torch.float64), nets.batches("channels", 1, dtype=torch.float64)
    replay = hessians.replay_of(model, batch)
    with replay.opened():
        first, again, other = (_direction(replay, generator(0, step), name, 3.0) for step in (4, 4, 5))
        plain = drawn(replay, generator(0, 4))
        flat = [hessians.unpadded(replay, vector) for vector in (first, again, other, plain)]
    assert flat[0].norm().item() == pytest.approx(3.0, rel=1e-12)
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])
    at, scales = hessians.slices(model), []
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
    model, batch = hessians.small_mlp(), hessians.small_batch()
    before = copy.deepcopy(model)
    options = {"points": 3, "dense": (), "matchings": ("relative-step",)}
    probe = LandscapeAlongGradient(**options, directions=("gradient", name), seed=2)
    found = read_steps(model, batch, probe, lr=0.1)
    plain = read_steps(copy.deepcopy(before), batch, LandscapeAlongGradient(**options), lr=0.1)
    assert {key: found[key] for key in plain} == plain  # the gradient's own names and values stay
    _, g, matrix = hessians.explicit(before, batch)
    walk, theta = hessians.flat_loss(before, batch)
    replay = hessians.replay_of(before, batch)
    with replay.opened():
        d = hessians.unpadded(replay, _direction(replay, generator(2, 0), name, g.norm().item()))
    grid = np.geomspace(1e-3, 3e-2, 3) * (theta.norm() / g.norm()).item()
    losses = [walk(theta - s * d).item() for s in grid]
    assert [found["", f"s@{name}-s={k}"] for k in range(3)] == pytest.approx(grid.tolist(), rel=1e-9)
    assert [found["", f"loss@{name}-s={k}"] for k in range(3)] == pytest.approx(losses, rel=1e-9)
    assert found["", f"loss_range@{name}-relative-step"] == pytest.approx(max(losses) - min(losses), rel=1e-8)
    assert found["", f"curvature@{name}"] == pytest.approx((d @ matrix @ d / (d @ d)).item(), rel=1e-8)


def test_unknown_directions_are_refused():
    with pytest.raises(UsageError, match="no direction 'down'"):
        LandscapeAlongGradient(directions=("down",))
