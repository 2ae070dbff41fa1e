"""The variance of batch means by the formula; loaders that can be shuffled and those that cannot."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from kit.findings import finding_of, is_quiet, repaired
from normscope.evidence import examples


def swinging(shifts, *, size=32, channels=5):
    return examples.alone(examples.batch_norm(channels), [examples.two_values(s, 2.0, size, channels) for s in shifts])


@pytest.mark.parametrize(
    ("shifts", "size"), [([3.0] * 5 + [-3.0] * 5, 8), ([0.0, 9.0, 1.0, 4.0], 32), ([5.0] * 9 + [20.0], 64)]
)
def test_the_excess_is_that_of_the_variance_of_means(shifts, size):
    finding = finding_of(swinging(shifts, size=size), "NS120")
    between = float(torch.tensor(shifts, dtype=torch.float64).var())
    within = 4.0 * size / (size - 1)
    assert finding.measured == pytest.approx(between / (within / size), rel=1e-5)
    assert finding.details["between_batches"] == pytest.approx(between / (between + within), rel=1e-5)
    assert f"vary {finding.measured:.3g} times as much" in finding.message
    assert f"and {between / (between + within):.0%} of the variance lies between batches" in finding.message
    assert not finding.fixable  # a list cannot be shuffled by somebody else


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_batches_drawn_at_random_have_an_excess_of_one(shift):
    stream = torch.Generator().manual_seed(0)
    loader = [torch.randn(16, 300, generator=stream) + shift * index for index in range(10)]
    case = examples.alone(examples.batch_norm(300), loader)
    if not shift:
        assert is_quiet(case, "NS120")
    else:
        expected = 1 + 16 * float(torch.arange(10.0).var())
        assert finding_of(case, "NS120").measured == pytest.approx(expected, rel=0.1)


def test_three_batches_are_too_few():
    assert is_quiet(swinging([9.0, 0.0, -9.0]), "NS120")
    assert not is_quiet(swinging([9.0, 0.0, -9.0, 0.0]), "NS120")


def test_samples_are_counted_and_not_their_positions():
    stream = torch.Generator().manual_seed(0)
    own = torch.randn(4, 8, 6, 1, generator=stream)  # all positions of a sample are alike
    case = examples.alone(torch.nn.BatchNorm1d(6), list(own.expand(4, 8, 6, 50) + 0.01 * torch.randn(4, 8, 6, 50)))
    assert is_quiet(case, "NS120")


def test_a_loader_in_order_is_looked_at_all_along_and_shuffled_by_the_fix():
    x = torch.linspace(-9, 9, 1600)[:, None] + torch.randn(1600, 3)
    data = TensorDataset(x)
    stream = torch.Generator().manual_seed(7)
    case = examples.alone(examples.batch_norm(3), DataLoader(data, batch_size=16, drop_last=True, generator=stream))
    case.loss_fn = lambda model, batch: examples.mean_square(model, batch[0])
    finding = finding_of(case, "NS120")
    assert finding.fixable
    assert finding.details["between_batches"] > 0.9  # ten batches one after the other would span a tenth of the range
    assert "shuffle=True" in repaired(case, "NS120")
    assert (case.loader.batch_size, case.loader.drop_last, case.loader.generator) == (16, True, stream)
    order = torch.cat([batch for (batch,) in case.loader])[:, 0]
    assert len(order) == 1600
    assert not torch.equal(order, x[:, 0])


def test_frozen_norms_are_not_looked_at():
    case = swinging([3.0] * 5 + [-3.0] * 5, size=8)
    case.model.eval()
    assert is_quiet(case, "NS120")


def test_two_kinds_in_turn_are_compared_each_with_itself():
    shifts = [3.0, -3.0] * 5
    assert is_quiet(swinging(shifts), "NS120")  # two streams, and each as it should be: that is NS135's
    within = [shift + 2 * index for index, shift in enumerate([9.0] * 5 + [-9.0] * 5)]
    assert not is_quiet(swinging([a for pair in zip(within[:5], within[5:], strict=True) for a in pair]), "NS120")


def test_places_are_compared_each_with_itself():
    stream = torch.Generator().manual_seed(0)
    case = examples.alone(examples.batch_norm(5), [torch.randn(32, 5, generator=stream) for _ in range(10)])
    case.loss_fn = lambda model, batch: model(batch).mean() + model(batch + 9).mean()
    assert is_quiet(case, "NS120")
    case.loader = swinging([9.0, 0.0, 1.0, 4.0]).loader
    finding = finding_of(case, "NS120")
    assert finding.measured == pytest.approx(finding_of(swinging([9.0, 0.0, 1.0, 4.0]), "NS120").measured, rel=1e-5)


def test_data_in_order_at_one_of_two_places_are_found():
    case = swinging([3.0] * 5 + [-3.0] * 5)
    expected = finding_of(case, "NS120").measured
    stream = torch.Generator().manual_seed(0)
    case.loss_fn = lambda model, batch: model(batch).mean() + model(torch.randn(32, 5, generator=stream)).mean()
    assert finding_of(case, "NS120").measured == pytest.approx(expected, rel=1e-5)
