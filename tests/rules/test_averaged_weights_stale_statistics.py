"""Averaged weights: whether their statistics are copies, and how far they are from the data at the averaged weights."""

import copy

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from normscope.evidence import Case, examples
from normscope.records import Severity


def averaged(distances, *, initial=False, size=32, wrapped=False):
    """A layer that passes data of deviation 2 on, and an average whose bias moves the mean of each channel."""
    channels, pooled = len(distances), 4.0 * size * 10 / (size * 10 - 1)
    linear = nn.Linear(channels, channels)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    model = nn.Sequential(linear, examples.batch_norm(channels, mean=5.0, variance=pooled))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].bias.copy_(torch.tensor(distances) * (4.0 + 1e-5) ** 0.5)
        if initial:
            other[1].reset_running_stats()
    shadow = torch.optim.swa_utils.AveragedModel(other) if wrapped else other
    loader = [examples.two_values(5.0, 2.0, size, channels)] * 10
    return Case(model.train(), examples.mean_square, loader, averaged=shadow), pooled


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("distances", "size"), [([0.0, 0.3, -0.2], 32), ([-2.0, 0.1], 8), ([0.02] * 5, 50)])
def test_the_distance_is_that_of_the_means_in_deviations(distances, size, wrapped):
    case, pooled = averaged(distances, size=size, wrapped=wrapped)
    finding = finding_of(case, "NS107")
    assert finding.measured == pytest.approx(max(map(abs, distances)), rel=1e-3)
    assert finding.places == ("1",)
    # The loss is the mean square of what the norm puts out: 1 with its own statistics, 1 + d^2 with those of elsewhere.
    costs = sum(d * d for d in distances) / len(distances) > 0.01
    assert finding.severity is (Severity.ERROR if costs else Severity.INFO)
    assert "norm; at its own weights" in finding.message
    assert f"up to {finding.measured:.2g} standard deviations away" in finding.message
    weights = [parameter.clone() for parameter in case.averaged.parameters()]
    buffers = {key: value.clone() for key, value in case.model.state_dict().items()}
    assert repaired(case, "NS107") == "recalibrated 1 norm of the averaged model"
    inner = case.averaged.module if wrapped else case.averaged
    torch.testing.assert_close(inner[1].running_mean, 5.0 + inner[0].bias.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inner[1].running_var, torch.full((len(distances),), pooled), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(weights, case.averaged.parameters(), strict=True))
    assert all(torch.equal(value, buffers[key]) for key, value in case.model.state_dict().items())


def test_initial_statistics_are_stale_too():
    case, _ = averaged([0.5, 0.0], initial=True)
    assert finding_of(case, "NS107").measured == pytest.approx(5.0 / 2.0 + 0.5, rel=1e-3)


def test_statistics_of_its_own_and_weights_that_are_the_same_are_no_finding():
    case, _ = averaged([0.5, 0.0])
    case.averaged[1].running_mean += 0.1
    assert is_quiet(case, "NS107")
    case, _ = averaged([0.0, 0.0])
    case.model[1].running_mean += 1
    case.averaged[1].running_mean += 1
    assert is_quiet(case, "NS107")


def test_what_it_costs_is_the_loss_of_the_averaged_model_over_that_of_the_trained_one():
    case, _ = averaged([2.0, 0.0])
    case.eval_loader = case.loader
    cost = finding_of(case, "NS107").cost
    assert cost.startswith("with them the loss in evaluation is +")
    assert float(cost.split("is +")[1].split()[0]) == pytest.approx(2.0, rel=0.01)  # mean over channels of 2 squared, 0


def test_statistics_that_are_neither_copied_nor_initial_are_judged_by_what_they_cost():
    """Half of the variance doubles the mean square of the output; the parameters are those of the model."""
    case, pooled = averaged([0.0, 0.0, 0.0])
    case.averaged[1].running_var.div_(2)
    finding = finding_of(case, "NS107")
    assert finding.measured == pytest.approx(2.0, rel=1e-3)
    assert finding.bound == 1.2
    assert "neither copied nor initial" in finding.message
    assert repaired(case, "NS107") == "recalibrated 1 norm of the averaged model"
    torch.testing.assert_close(case.averaged[1].running_var, torch.full((3,), pooled), rtol=1e-4, atol=1e-5)
    assert is_quiet(case, "NS107")
