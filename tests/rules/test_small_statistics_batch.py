"""The scatter of batch variances, against its formula on planted batches and against theory on random ones."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking, layers
from normscope.evidence import examples


@pytest.mark.parametrize(
    ("variances", "size"), [([1.0, 3.0], 16), ([0.2, 1.0, 1.0, 4.0, 0.5], 8), ([2.0, 9.0] * 5, 50)]
)
def test_the_scatter_is_the_deviation_over_the_mean(variances, size):
    batches = (variances * 10)[:10]
    loader = [examples.two_values(3.0, variance**0.5, size, 5) for variance in batches]
    finding = finding_of(examples.alone(examples.batch_norm(5), loader), "NS105")
    several = torch.tensor(batches, dtype=torch.float64)
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
    loader = [examples.two_values(3.0, d, 16, 5) for d in (1.0, 3.0) * 5]
    case = examples.alone(layers.BatchNorm1d(5, **options), loader)
    assert is_quiet(case, "NS105") is not named


def test_one_norm_of_six_is_chance():
    def make(count):
        loader = [examples.two_values(3.0, d, 16, 12) for d in (1.0, 3.0) * 5]
        norms = [examples.batch_norm(12) for _ in range(count)]
        return examples.alone(norms[0], loader, then=norms[1:])

    assert finding_of(make(5), "NS105").places == ("0", "1", "2", "3", "4")
    assert is_quiet(make(6), "NS105")  # behind the first norm, all batches have the variance 1


def test_gains_and_shifts_go_over_to_group_normalization():
    case = examples.alone(examples.batch_norm(8), [examples.two_values(3.0, d, 16, 8) for d in (1.0, 3.0) * 5])
    nn.init.normal_(case.model[0].weight)
    nn.init.normal_(case.model[0].bias)
    gain, shift = case.model[0].weight, case.model[0].bias
    repaired(case, "NS105")
    assert case.model[0].weight is gain
    assert case.model[0].bias is shift
    assert not isinstance(case.model[0], nn.BatchNorm1d)
