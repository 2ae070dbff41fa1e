"""The scatter of batch variances, against its formula on planted batches and against theory on random ones."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking, layers
from normscope.evidence import Case, examples


def scattering(channels):
    """Return batches whose variances all differ."""
    return [examples.two_values(3.0, float(d), 16, channels) for d in (1, 10, 2, 9, 3, 8, 4, 7, 5, 6)]


@pytest.mark.parametrize(
    ("variances", "size"),
    [
        ([1.0, 3.0] * 5, 16),
        ([0.2, 1.0, 1.2, 4.0, 0.5, 0.7, 2.0, 3.0, 0.3, 0.9], 8),
        ([1, 10, 2, 9, 3, 8, 4, 7, 5, 6], 50),
    ],
)
def test_the_scatter_is_the_deviation_over_the_mean(variances, size):
    loader = [examples.two_values(3.0, variance**0.5, size, 5) for variance in variances]
    finding = finding_of(examples.alone(examples.batch_norm(5), loader), "NS105")
    several = torch.tensor(variances, dtype=torch.float64)
    c4 = 1 + 0.25 / (10 - 0.75)  # the deviation of so few values is biased low
    assert finding.measured == pytest.approx(float(several.std() / several.mean()) * c4, rel=1e-4)
    assert finding.details == {"values_a_channel": float(size)}
    assert f"scatters by {finding.measured:.0%} from batch to batch: it is taken over {size} values" in finding.message


@pytest.mark.parametrize("size", [4, 8])
def test_independent_normal_values_scatter_as_theory_has_it(size):
    stream = torch.Generator().manual_seed(0)
    loader = [torch.randn(size, 400, generator=stream) for _ in range(40)]
    case = examples.alone(examples.batch_norm(400), loader)
    (finding,) = checking.check(case, ["NS105"], batches=40, gap=False)
    assert finding.measured == pytest.approx((2 / (size - 1)) ** 0.5, rel=0.1)


def test_every_norm_with_as_few_values_is_named_and_none_with_more():
    case = examples.healthy(examples.cnn, size=4, trained=0)
    case.model[8] = nn.Sequential(nn.Linear(192, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 4))
    assert finding_of(case, "NS105").places == ("8.1",)


@pytest.mark.parametrize(
    ("options", "named"),
    [({}, True), ({"statistics": "sync"}, True), ({"statistics": "ghost", "group_size": 8}, False),
     ({"statistics": "renorm"}, False)],
)  # fmt: skip
def test_norms_whose_statistics_are_not_those_of_the_batch_alone_are_not_named(options, named):
    case = examples.alone(layers.BatchNorm1d(5, **options), scattering(5))
    assert is_quiet(case, "NS105") is not named


def test_one_norm_of_six_is_chance():
    def make(count):
        norms = [examples.batch_norm(12) for _ in range(count)]
        return examples.alone(norms[0], scattering(12), then=norms[1:])

    assert finding_of(make(5), "NS105").places == ("0", "1", "2", "3", "4")
    assert is_quiet(make(6), "NS105")  # behind the first norm, all batches have the variance 1


def test_gains_and_shifts_go_over_to_group_normalization():
    case = examples.alone(examples.batch_norm(8), scattering(8))
    nn.init.normal_(case.model[0].weight)
    nn.init.normal_(case.model[0].bias)
    gain, shift = case.model[0].weight, case.model[0].bias
    repaired(case, "NS105")
    assert case.model[0].weight is gain
    assert case.model[0].bias is shift
    assert not isinstance(case.model[0], nn.BatchNorm1d)


class Several(nn.Module):
    """One norm for ``x`` and for ``factor * x``, of a batch that is cut off at so many samples for the second."""

    def __init__(self, factor, size=None):
        super().__init__()
        self.norm, self.factor, self.size = nn.BatchNorm1d(12), factor, size

    def forward(self, x):
        return torch.cat([self.norm(x), self.norm(self.factor * x[: self.size])])


def test_places_are_compared_each_with_itself():
    stream = torch.Generator().manual_seed(0)
    loader = [torch.randn(64, 12, generator=stream) for _ in range(10)]
    assert is_quiet(Case(Several(10.0).train(), examples.mean_square, loader), "NS105")
    few = Case(Several(10.0, 4).train(), examples.mean_square, loader)
    finding = finding_of(few, "NS105")  # at the second place the batch is small
    assert finding.details == {"values_a_channel": 4.0}
    assert finding.measured == pytest.approx((2 / 3) ** 0.5, rel=0.4)


def test_passes_of_a_step_are_compared_each_with_itself():
    stream = torch.Generator().manual_seed(0)
    loader = [torch.randn(64, 12, generator=stream) for _ in range(10)]
    case = examples.alone(examples.batch_norm(), loader)
    case.loss_fn = lambda model, batch: model(batch).sum() + model(0.1 * batch).sum()
    assert is_quiet(case, "NS105")


def test_steps_that_only_some_sequences_reach_are_left_out():
    norm = examples.batch_norm()
    case = examples.alone(norm, [torch.randn(64, 12, generator=torch.Generator().manual_seed(i)) for i in range(10)])

    def forward(x):
        out = norm(x)
        for scale in range(int(x[0, 0] > 0) + 1):  # as long as its sequence
            out = out + norm(x * 10**scale)
        return out

    case.model.forward = forward
    assert is_quiet(case, "NS105")


def test_streams_that_alternate_scatter_no_more_than_each():
    stream = torch.Generator().manual_seed(0)
    loader = [torch.randn(64, 12, generator=stream) * (1 + 9 * (index % 2)) for index in range(10)]
    assert is_quiet(examples.alone(examples.batch_norm(), loader), "NS105")
