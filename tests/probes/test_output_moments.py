"""Output moments against explicit Jacobians and eigenvectors, and against what batch norm must do to them."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from kit import explicit_hessians as hessians
from kit.empty_steps import EMPTY_STEPS
from kit.readings import read_steps
from normscope._errors import UsageError
from normscope.probes import OutputMoments, Recorder

pytestmark = EMPTY_STEPS

MODES = {"train": False, "frozen": True}


def explicit_moments(model, x, frozen):
    """Rows: gradients of the mean, the variance and the skewness of each output, one after the other."""
    twin = copy.deepcopy(model)
    if frozen:
        for module in twin.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
    values = {name: parameter.detach() for name, parameter in twin.named_parameters()}

    def moments(values):
        buffers = {name: buffer.clone() for name, buffer in twin.named_buffers()}
        y = functional_call(twin, {**values, **buffers}, (x,))
        mean = y.mean(0)
        variance = y.var(0, unbiased=False)
        return torch.cat([mean, variance, ((y - mean) ** 3).mean(0) / variance**1.5])

    rows = torch.autograd.functional.jacobian(
        lambda *parts: moments(dict(zip(values, parts, strict=True))), tuple(values.values())
    )
    return torch.cat([row.flatten(1) for row in rows], 1)


def share(rows, vectors):
    """Squared length of unit vectors in the span, by the singular value decomposition."""
    _, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    basis = right[sizes > 1e-9 * sizes[0]]
    return (basis @ vectors).square().sum(0).mean().item()


@pytest.mark.parametrize("mode", MODES)
def test_overlaps_are_those_of_explicit_eigenvectors(mode):
    model, batch = hessians.small_mlp(smooth=True), hessians.small_batch()
    before = copy.deepcopy(model)
    found = read_steps(model, batch, OutputMoments(top=3, tolerance=1e-10, products=100))
    values, vectors = torch.linalg.eigh(hessians.explicit(before, batch, MODES[mode])[2])
    rows = explicit_moments(before, batch[0], MODES[mode])
    assert found["", f"converged@{mode}"] == 1
    assert found["", f"top_eigenvalue@{mode}"] == pytest.approx(values[-1].item(), rel=1e-9)
    assert found["", f"overlap_mean@{mode}"] == pytest.approx(share(rows[:4], vectors[:, -3:]), abs=1e-6)
    assert found["", f"overlap_all@{mode}"] == pytest.approx(share(rows, vectors[:, -3:]), abs=1e-6)
    for name, dimension in (("mean", 4), ("all", 12)):
        assert found["", f"random_overlap_{name}@{mode}"] == pytest.approx(dimension / rows.shape[1], rel=0.8)
    at = hessians.slices(before)
    for site in ("0", "3", "6"):
        expected = rows[:4, at[f"{site}.weight"]].square().sum(1).mean().item()
        assert found[site, f"output_mean_gradient@{mode}"] == pytest.approx(expected, rel=1e-9)
    assert not math.isclose(found["", "overlap_all@train"], found["", "overlap_all@frozen"], rel_tol=1e-3)


def test_a_batch_norm_at_the_output_lets_no_mean_through_in_train_mode_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.BatchNorm1d(4)).double()
    found = read_steps(model, hessians.small_batch(), OutputMoments(top=2))
    for site in ("0", "2"):
        assert found[site, "output_mean_gradient@train"] < 1e-25
        assert found[site, "output_mean_gradient@frozen"] > 1e-3


def test_control_is_small_where_parameters_are_many():
    model = nn.Sequential(nn.Linear(6, 200), nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, 4))
    found = read_steps(model, (hessians.small_batch()[0].float(), hessians.small_batch()[1]), OutputMoments())
    assert found["", "random_overlap_all@train"] < 0.02
    assert found["", "overlap_all@frozen"] > 10 * found["", "random_overlap_all@frozen"]


def test_outputs_with_positions_and_a_chosen_site():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 1), nn.Flatten())
    x = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    found = read_steps(model, x, OutputMoments("3", top=1), loss_fn=lambda m, b: m(b).square().mean())
    assert 0 <= found["", "overlap_mean@train"] <= 1 + 1e-5
    means = model(x).unflatten(1, (3, 9)).mean((0, 2))
    squares = [torch.autograd.grad(mean, model[3].weight, retain_graph=True)[0].square().sum() for mean in means]
    assert found["3", "output_mean_gradient@train"] == pytest.approx(torch.stack(squares).mean().item(), rel=1e-4)


def test_a_model_that_returns_no_logits_is_told_so():
    scope = Recorder(nn.Linear(3, 1), lambda m, b: m(b).sum(), None, [OutputMoments("")], every=1)
    scope.model.forward = lambda x: torch.nn.functional.linear(x, scope.model.weight).sum()
    with scope.step(torch.ones(2, 3)):
        pass
    assert scope.drain() == []
    assert scope.not_read["output_moments"] == f"{OutputMoments.NOTHING} (step 0)"
    assert "(N, C, ...)" in OutputMoments.NOTHING


def test_what_is_not_finite_is_recorded_so():
    model, batch = hessians.small_mlp(), hessians.small_batch()
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    found = read_steps(model, batch, OutputMoments(top=2))
    values = {name: value for (site, name), value in found.items() if site == "" and "converged" not in name}
    assert all(map(math.isnan, values.values())), values
    assert found["", "converged@train"] == 0


@pytest.mark.parametrize("options", [{"top": 0}, {"products": 5}, {"modes": ("eval",)}, {"tolerance": 0.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match="output_moments"):
        OutputMoments(**options)


def test_records_are_the_same_on_a_second_run():
    runs = [
        read_steps(hessians.small_mlp(), hessians.small_batch(), OutputMoments(seed=7), lr=0.1, steps=2)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
