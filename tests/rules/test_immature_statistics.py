"""What is left of the initial values, by the formula; checkpoints; what recalibration leaves."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking
from normscope.evidence import examples
from normscope.records import Severity


def young(count, momentum, *, mean=3.0, deviation=2.0, size=32):
    """A norm whose running statistics are the exact moving average after so many batches of the same kind."""
    left, x = (1 - momentum) ** count, examples.two_values(mean, deviation, size)
    variance = deviation**2 * size / (size - 1)
    norm = examples.batch_norm(mean=(1 - left) * mean, variance=left + (1 - left) * variance, momentum=momentum)
    norm.num_batches_tracked.fill_(count)
    return examples.alone(norm, [x] * 5, eval_loader=[x])


@pytest.mark.parametrize(("count", "momentum"), [(1, 0.1), (20, 0.1), (5, 0.3), (100, 0.02), (12, 0.2)])
def test_the_share_is_that_of_a_moving_average(count, momentum):
    finding = finding_of(young(count, momentum), "NS109")
    assert finding.measured == pytest.approx((1 - momentum) ** count)
    assert finding.bound == 0.05
    assert finding.message == (
        f"the running statistics of 1 of 1 norm are up to {(1 - momentum) ** count:.0%} initial values"
    )
    assert finding.severity is Severity.WARNING


def test_statistics_of_the_data_with_a_low_count_are_recalibrated_ones():
    case = young(5, 0.1)
    case.model[0].running_mean.fill_(3.0)
    case.model[0].running_var.fill_(4.0)
    assert is_quiet(case, "NS109")


def test_initial_values_are_an_error_and_named_apart_from_young_ones():
    case = young(10, 0.1)
    norm = examples.batch_norm()
    nn.init.constant_(norm.weight, 2.0)
    case.model.append(norm)
    error, warning = checking.check(case, ["NS109"], gap=False)
    assert (error.places, error.measured, error.severity) == (("1",), 1.0, Severity.ERROR)
    assert error.message.startswith("1 of 2 norms still has")
    assert warning.places == ("0",)
    checking.fix(case, [error, warning], unsafe=True)
    torch.testing.assert_close(case.model[0].running_mean, torch.full((12,), 3.0), rtol=1e-5, atol=1e-5)
    assert not case.model[0].num_batches_tracked
    assert is_quiet(case, "NS109")


@pytest.mark.parametrize("lacking", ["eval_loader", "momentum"])
def test_without_evaluation_or_with_a_cumulative_average_nothing_is_said(lacking):
    case = young(3, 0.1)
    if lacking == "eval_loader":
        case.eval_loader = None
    else:
        case.model[0].momentum = None
    assert is_quiet(case, "NS109")


def test_a_checkpoint_is_judged_by_its_counts_at_the_usual_momentum():
    state = young(10, 0.1).model.state_dict()
    (finding,) = checking.check_state(state, ["NS109"])
    assert finding.measured == pytest.approx(0.9**10)
    assert not finding.fixable
    state["0.num_batches_tracked"] = torch.tensor(29)
    assert not checking.check_state(state, ["NS109"])
    state["0.num_batches_tracked"] = torch.tensor(0)
    assert not checking.check_state(state, ["NS109"])


def test_a_recalibrated_model_says_how_many_norms_it_was():
    assert repaired(young(4, 0.1), "NS109") == "recalibrated 1 norm on the training data"


@pytest.mark.parametrize(("count", "deviation"), [(60, 1e-3), (90, 1e-4), (35, 0.1)])
def test_the_initial_variance_outlives_the_count_where_data_are_small(count, deviation):
    """The moving average of a variance v holds ``left / ((1 - left) v + left)`` of its initial 1, and eps blurs it."""
    left, variance = 0.9**count, deviation**2 * 32 / 31
    finding = finding_of(young(count, 0.1, mean=0.01, deviation=deviation), "NS109")
    assert finding.measured == pytest.approx(left / (left + (1 - left) * variance + 1e-5), rel=1e-3)
    assert finding.measured > 0.5
    assert finding.severity is Severity.WARNING


@pytest.mark.parametrize(("count", "deviation"), [(60, 0.2), (140, 1e-3), (150, 1e-5), (90, 0.0)])
def test_small_data_that_the_average_or_eps_has_caught_up_with_are_left(count, deviation):
    assert is_quiet(young(count, 0.1, mean=0.01, deviation=deviation), "NS109")


def test_recalibrated_statistics_of_small_data_are_left():
    case = young(60, 0.1, mean=0.01, deviation=1e-3)
    case.model[0].running_mean.fill_(0.01)
    case.model[0].running_var.fill_(1e-6)
    assert is_quiet(case, "NS109")
