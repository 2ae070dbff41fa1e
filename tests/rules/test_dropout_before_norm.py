"""Dropout in front of a norm: the ratio of variances by theory, and what the fix makes of evaluation."""

import copy

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from normscope import rules
from normscope.evidence import Case, examples


def dropped(share, mean, *, running=None, channels=40):
    """Values of this mean and of variance 1 under dropout, and a norm with the running variance of training."""
    on = (1 + share * mean**2) / (1 - share)
    norm = examples.batch_norm(channels, mean=mean, variance=on if running is None else running)
    model = nn.Sequential(nn.Dropout(share), norm).train()
    return Case(model, examples.mean_square, [examples.two_values(mean, 1.0, 256, channels)] * 10), on


@pytest.mark.parametrize(("share", "mean"), [(0.5, 0.0), (0.3, 2.0), (0.1, -4.0)])
def test_the_ratio_is_that_of_theory(share, mean):
    case, on = dropped(share, mean)
    finding = finding_of(case, "NS125")
    assert finding.measured == pytest.approx(1 / on, rel=0.05)
    assert finding.bound == 0.8
    assert f"it is {finding.measured:.2g} times that of training" in finding.message
    assert finding.cost == (
        f"in evaluation the norm puts out {finding.measured**0.5:.2g} times the standard deviation it should"
    )
    repaired(case, "NS125")
    torch.testing.assert_close(case.model[1].running_var, torch.ones(40) * 2560 / 2559, rtol=1e-4, atol=1e-4)


def test_a_running_variance_of_evaluation_is_right():
    case, _ = dropped(0.5, 0.0, running=1.0)
    assert is_quiet(case, "NS125")


@pytest.mark.parametrize("how", ["off", "none", "eval"])
def test_networks_without_active_dropout_are_not_looked_at(how):
    case, _ = dropped(0.5, 0.0)
    if how == "off":
        case.model[0].p = 0.0
    elif how == "none":
        case.model[0] = nn.Identity()
    else:
        case.model[0].eval()
    assert is_quiet(case, "NS125")


def test_the_loss_in_evaluation_falls():
    case = rules.get("NS125").SICK[0]()

    def loss():
        model = copy.deepcopy(case.model).eval()
        with torch.no_grad():
            return sum(float(examples.loss_fn(model, batch)) for batch in case.eval_loader)

    before = loss()
    repaired(case, "NS125")
    assert loss() < before
