"""Interaction of layers against explicit Hessians, plain loops and a chain of known interaction."""

import copy
import math

import pytest
import torch
from torch import nn

from kit import explicit_hessians as hessians, varied_networks as nets
from kit.empty_steps import EMPTY_STEPS
from kit.readings import read_steps
from normscope._errors import UsageError
from normscope.probes import Descent, Interaction

pytestmark = EMPTY_STEPS


@pytest.mark.parametrize("probe", [Descent, Interaction])
def test_what_is_not_finite_is_recorded_so(probe):
    model, batch = hessians.small_mlp(), hessians.small_batch()
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    found = read_steps(model, batch, probe(), lr=0.1)
    assert all(math.isnan(value) for value in found.values()), found


GROUPS = {"tiny": [["0", "1"], ["3", "4"], ["6"]], "plain": [["0"], ["2"], ["4"]]}


@pytest.mark.parametrize("net", GROUPS)
def test_interaction_is_the_plain_loop_over_layers(net):
    model, batch = hessians.small_mlp(norm=net == "tiny"), hessians.small_batch()
    before = copy.deepcopy(model)
    found = read_steps(model, batch, Interaction(rates=(0.03, 2.0)), lr=0.1)
    loss, g, matrix = hessians.explicit(before, batch)
    at = hessians.slices(before)
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

    square = (g @ g).item()
    steps = {f"c={c:g}": c * loss / square for c in (0.01, 0.1, 0.5)}
    for label, alpha in (steps | {"lr=0.03": 0.03, "lr=2": 2.0}).items():
        decrease = alpha * square
        whole, second = moved(g, alpha), alpha**2 * (g @ matrix @ g).item() / 2
        expected = {
            "remainder": abs(whole + decrease),
            "second_order": second,
            "third_order": abs(whole + decrease - second),
            "interaction": whole - sum(moved(part, alpha) for part in parts),
        }
        for name, value in expected.items():
            assert found["", f"{name}@{label}"] == pytest.approx(value / decrease, rel=1e-7), name
        assert found["", f"interaction_size@{label}"] == abs(found["", f"interaction@{label}"])


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
    found = read_steps(chain(length, product), one, Interaction((c,)), loss_fn=lambda m, b: m(b).sum())
    actual = (1 - c / length) ** length
    alone = length * (1 - c / length) - (length - 1)
    assert found["", f"remainder@c={c:g}"] == pytest.approx(abs(actual - 1 + c) / c, rel=1e-9)
    assert found["", f"second_order@c={c:g}"] == pytest.approx(c * (length - 1) / length / 2, rel=1e-9)
    assert found["", f"interaction@c={c:g}"] == pytest.approx((actual - alone) / c, rel=1e-9)
    assert found["", "cross_share"] == pytest.approx(1, rel=1e-9)  # each factor alone acts linearly


def test_behind_batch_norm_the_linear_chain_has_no_interaction():
    model = nn.Sequential(chain(6, 0.3), nn.BatchNorm1d(1, affine=False, eps=1e-14, dtype=torch.float64), chain(1, 0.7))
    x = torch.randn(16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = read_steps(model, x, Interaction((0.1,)), loss_fn=lambda m, b: (m(b) * b).mean())
    assert found["", "remainder@c=0.1"] < 1e-8
    assert abs(found["", "interaction@c=0.1"]) < 1e-8


def test_without_decreases_only_the_share_is_taken():
    assert list(read_steps(hessians.small_mlp(), hessians.small_batch(), Interaction(()))) == [("", "cross_share")]
    for wrong in ({"decreases": (0.0,)}, {"rates": (-0.1,)}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))}.*positive"):
            Interaction(**wrong)
