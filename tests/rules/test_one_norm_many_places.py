"""A norm at several places: their divergence by the formula, the cost by hand, and which calls are of one place."""

import math

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet
from normscope import checking
from normscope.evidence import Case, examples
from normscope.records import Severity


class Scaled(nn.Module):
    """A norm that is called for several scales of a batch."""

    def __init__(self, *scales, trained=True, channels=4):
        super().__init__()
        variance = math.fsum(scale**2 for scale in scales) / len(scales) if trained else 1.0
        self.norm, self.scales = examples.batch_norm(channels, variance=variance), scales

    def forward(self, x):
        return torch.stack([self.norm(scale * x) for scale in self.scales])


def squares(model, batch):
    """Zero where every place comes out with a mean square of 1."""
    return 1e-3 + (model(batch).square().mean((1, 2)) - 1).square().sum()


def at(*scales, loss_fn=squares, trained=True, batches=4):
    return Case(Scaled(*scales, trained=trained).train(), loss_fn, [examples.two_values(0.0, 1.0, 32, 4)] * batches)


@pytest.mark.parametrize("scales", [(1.0, 3.0), (1.0, 2.0, 4.0), (0.5, 0.5, 0.5, 5.0)])
def test_divergence_and_cost_are_those_of_the_variances(scales):
    finding = finding_of(at(*scales), "NS136")
    variances = [scale**2 for scale in scales]
    total = math.fsum(variances) / len(scales)
    divergence = (math.log(total) - math.fsum(map(math.log, variances)) / len(scales)) / 2
    assert finding.measured == pytest.approx(divergence, rel=1e-4)
    assert finding.details["places"] == len(scales)
    assert finding.details["deviations"] == pytest.approx(max(scales) / min(scales), rel=1e-4)
    loss = math.fsum((variance / total - 1) ** 2 for variance in variances)
    assert finding.details["loss_ratio"] == pytest.approx(1 + loss / 1e-3, rel=1e-3)
    assert finding.cost == f"the loss in eval mode is {loss + 1e-3:.4g}; with statistics of each place 0.001"
    assert finding.message.startswith(
        f"1 norm is called {len(scales)} times in one pass, at places whose data differ: in the upper quartile"
    )


def test_places_that_cost_nothing_are_left_in_peace():
    assert is_quiet(at(1.0, 3.0, loss_fn=lambda model, batch: 1 + model(batch).mean()), "NS136")
    loss_fn = examples.seeded(lambda: lambda model, batch: 1 + model(batch).mean() - squares(model, batch))
    assert is_quiet(at(1.0, 3.0, loss_fn=loss_fn), "NS136")  # evaluation is the better for it


@pytest.mark.parametrize(("scale", "severity"), [(2.5, Severity.INFO), (6.0, Severity.WARNING)])
def test_before_training_the_divergence_decides(scale, severity):
    finding = finding_of(at(1.0, scale, trained=False), "NS136")
    assert finding.severity is severity
    assert finding.measured < math.log(2) / 2 or severity is Severity.WARNING
    assert "loss_ratio" not in finding.details


def test_what_cannot_be_evaluated_is_told_by_the_divergence():
    def loss_fn(model, batch):
        if not model.training:
            raise RuntimeError("no losses in eval mode")
        return squares(model, batch)

    finding = finding_of(at(1.0, 6.0, loss_fn=loss_fn), "NS136")
    assert finding.severity is Severity.WARNING
    assert "loss_ratio" not in finding.details


def test_one_cause_is_one_finding():
    every = ["NS102", "NS105", "NS112", "NS113", "NS120", "NS135", "NS136"]
    found = checking.check(at(1.0, 6.0, batches=10), every, gap=False)
    assert [finding.code for finding in found] == ["NS136"]
    two_passes = at(1.0, batches=10)
    two_passes.loss_fn = lambda model, batch: squares(model, batch) + squares(model, 6 * batch)
    found = checking.check(two_passes, every, gap=False)
    assert [finding.code for finding in found] == ["NS112"]


def test_sequences_of_several_lengths_are_compared_step_by_step():
    stream = torch.Generator().manual_seed(0)
    loader = [torch.randn(32, 4, generator=stream) for _ in range(10)]
    model = Scaled(2.0).train()
    norm, factor = model.norm, [1.0]
    # A batch of 31 samples has three steps, one of 30 two, one of 32 four.
    model.forward = lambda x: torch.stack([norm(x * factor[0] ** step) for step in range(len(x) % 3 + 2)])
    case = Case(model, squares, [batch[: 32 - index % 3] for index, batch in enumerate(loader)])
    assert is_quiet(case, "NS136")
    factor[0] = 4.0
    assert finding_of(case, "NS136").details["places"] == 4
    assert is_quiet(case, "NS105")
    assert is_quiet(case, "NS120")
    assert is_quiet(case, "NS112")


def test_evaluation_beyond_the_places_of_training_uses_the_last_ones():
    case = at(1.0, 3.0)
    case.eval_loader = [examples.two_values(0.0, 1.0, 32, 4)] * 2
    case.eval_loss_fn = lambda model, batch: (
        1e-3 + sum((model.norm(scale * batch).square().mean() - 1).square() for scale in (1.0, 3.0, 3.0))
    )
    finding = finding_of(case, "NS136")
    assert finding.cost.endswith("with statistics of each place 0.001")  # the third as the second, called by parts


def test_frozen_norms_are_not_looked_at():
    case = at(1.0, 3.0)
    case.model.eval()
    assert is_quiet(case, "NS136")
