"""Running statistics that are wrong by known amounts: distance, share of channels and loss, computed by hand."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking, rules
from normscope.evidence import examples


def planted(shifts, *, size=32, deviation=2.0):
    """A norm on the data, one channel for each distance of its running mean, in standard deviations of the data."""
    batches = 10
    pooled = deviation**2 * size * batches / (size * batches - 1)
    norm = examples.batch_norm(len(shifts), mean=3.0, variance=pooled, momentum=0.0)
    norm.running_mean += torch.tensor(shifts) * (pooled + norm.eps) ** 0.5
    x = examples.two_values(3.0, deviation, size, len(shifts))
    return examples.alone(norm, [x] * batches, loss_fn=lambda model, x: 1 + examples.mean_square(model, x)), pooled


@pytest.mark.parametrize(("shifts", "size"), [([0.9, 0, -2.0, 0.1], 32), ([0.0] * 5 + [3.0], 10), ([-1.5, 1.0], 64)])
def test_distance_share_and_loss_are_those_of_the_formula(shifts, size):
    case, pooled = planted(shifts, size=size)
    finding = finding_of(case, "NS102")
    square = 4.0 / (pooled + 1e-5)  # of the output with the statistics of the data
    raised = square + sum(shift**2 for shift in shifts) / len(shifts)
    assert finding.measured == pytest.approx((1 + raised) / (1 + square), rel=1e-4)
    assert finding.details["shift"] == pytest.approx(max(map(abs, shifts)), rel=1e-4)
    off = sum(abs(shift) > 0.5 for shift in shifts) / len(shifts)
    assert finding.details["channels_off"] == off
    assert (
        f"in 1 of 1 norm: up to {off:.0%} of a norm's channels are off, a mean by up to {max(map(abs, shifts)):.2g} "
        in (finding.message)
    )
    assert f"eval mode is {1 + raised:.4g}; with statistics of the data it is {1 + square:.4g}" in finding.cost
    repaired(case, "NS102")
    torch.testing.assert_close(case.model[0].running_mean, torch.full((len(shifts),), 3.0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(case.model[0].running_var, torch.full((len(shifts),), pooled), rtol=1e-5, atol=1e-5)


def test_statistics_that_are_off_without_consequence_are_no_finding():
    case, _ = planted([2.0, 2.0])
    case.loss_fn = lambda model, x: 30 + examples.mean_square(model, x)
    assert is_quiet(case, "NS102")


def test_a_negative_loss_is_no_gap_and_a_gap_in_it_is_found():
    def below_zero(model, batch):
        return examples.loss_fn(model, batch) - 1.0

    well = examples.healthy(examples.mlp)
    well.loss_fn = below_zero
    assert not checking.check(well, ["NS102"])
    sick = rules.get("NS102").SICK[0]()
    sick.loss_fn = below_zero
    assert [finding.code for finding in checking.check(sick, ["NS102"])] == ["NS102"]


@pytest.mark.parametrize("net", [examples.mlp, examples.cnn, examples.residual])
def test_an_untrained_network_with_evaluation_data_has_no_gap_to_speak_of(net):
    case = examples.healthy(net, trained=0, change=_weights_that_lead_far_from_initial_statistics)
    assert [finding.code for finding in checking.check(case, ["NS102", "NS109"])] == []
    optimizer = case.optimizer = torch.optim.Adam(case.model.parameters(), lr=1e-4)
    examples.loss_fn(case.model, case.loader[0]).backward()
    optimizer.step()
    for norm in examples.norms(case.model):
        norm.reset_running_stats()
    assert "NS109" in [finding.code for finding in checking.check(case, ["NS109"])]


def _weights_that_lead_far_from_initial_statistics(model):
    with torch.no_grad():
        next(model.parameters()).mul_(30)


def lagging(factors, *, spread=0.0):
    """Norms one behind another, whose running variances are those of their data times a factor each.

    Args:
        factors: One a norm.
        spread: Standard deviation, over batches, of the share of the outputs in the loss.
    """
    several = []
    for index, factor in enumerate(factors):
        several.append(examples.batch_norm(variance=factor * 320 / 319 * (9.0 if index == 0 else 1.0), momentum=0.0))
    signs = [1, -1] * 5
    loader = [(examples.two_values(1.0, 3.0), 1 + sign * spread) for sign in signs]
    several[0].running_mean.fill_(1.0)

    def loss_fn(model, batch):
        return 0.1 + batch[1] * model(batch[0]).square().mean()

    return examples.alone(several[0], loader, then=several[1:], loss_fn=loss_fn)


@pytest.mark.parametrize(("factor", "norms"), [(0.8, 6), (0.95, 20), (0.6, 3)])
def test_lags_that_no_gate_sees_are_found_together_by_their_share_of_the_loss(factor, norms):
    """Each norm passes on its variance over the factor: the mean square of the output is their product."""
    case = lagging([factor] * norms)
    finding = finding_of(case, "NS102")
    assert list(finding.places) == [str(index) for index in range(norms)]
    assert finding.measured == pytest.approx((0.1 + factor**-norms) / 1.1, rel=0.01)
    assert finding.details["running_statistics"] == pytest.approx(factor**-norms - 1, rel=0.07)  # 319 / 320 a norm
    assert finding.bound == 2.0
    assert f"lag a little in {norms} norms" in finding.message
    assert repaired(case, "NS102") == f"recalibrated {norms} norms on the training data"
    assert is_quiet(case, "NS102")


@pytest.mark.parametrize("factors", [[0.9] * 6, [0.7, 1 / 0.7] * 5, [0.51], [1.3] * 12])
def test_lags_that_cancel_or_cost_little_are_left(factors):
    assert is_quiet(lagging(factors), "NS102")


def test_a_share_within_the_noise_of_the_loss_over_batches_is_left():
    assert is_quiet(lagging([0.8] * 6, spread=1.5), "NS102")
    assert not is_quiet(lagging([0.8] * 6, spread=0.3), "NS102")


class Again(nn.Module):
    """A norm that one pass calls several times, each time on what it put out."""

    def __init__(self, norm, times):
        super().__init__()
        self.norm, self.times = norm, times

    def forward(self, x):
        for _ in range(self.times):
            x = self.norm(x)
        return x


@pytest.mark.parametrize(("times", "factor"), [(8, 0.9), (5, 0.8), (12, 0.94)])
def test_a_lag_of_one_norm_multiplies_from_call_to_call(times, factor):
    """In evaluation the mean square grows by 1 / factor at each call; in training it is 1 after each."""
    norm = examples.batch_norm(variance=factor * 320 / 319, momentum=0.0)
    case = examples.alone(norm, [examples.two_values(0.0, 1.0)] * 10)
    case.model = Again(norm, times).train()
    finding = finding_of(case, "NS102")
    assert finding.measured == pytest.approx(factor**-times, rel=0.05)
    assert "none of them far, and from call to call that makes the loss" in finding.message
    case.model.times = 1
    assert is_quiet(case, "NS102")


def test_a_model_handed_over_in_eval_mode_is_held_against_the_data_all_the_same():
    """Its training uses no batch statistics, so that the gap has no share of its running ones: the rule takes that."""
    case, pooled = planted([0.9, 0, -2.0, 0.1])
    case.model.eval()
    square = 4.0 / (pooled + 1e-5)
    found = checking.check(case, ["NS102"])
    assert found[0].measured == pytest.approx(1 + (0.9**2 + 2.0**2 + 0.1**2) / 4 / (1 + square), rel=1e-4)
    assert found.gap.of("running statistics") == 0
