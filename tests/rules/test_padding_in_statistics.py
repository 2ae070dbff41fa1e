"""Padding: its share and how far it moves the mean, by hand, in each layout that is seen."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet
from normscope import checking, layers, rules
from normscope.evidence import Case, examples

LENGTHS = (20, 12, 5, 16)


def sequences(lengths=LENGTHS, length=20, channels=3, fill=0.0):
    """Values of mean 3 and deviation 2 (by columns), then padding."""
    x = examples.two_values(3.0, 2.0, length, channels).T.expand(len(lengths), channels, length)
    inside = torch.arange(length) < torch.tensor(lengths)[:, None, None]
    return torch.where(inside, x, fill), inside


def shares(lengths, length=20):
    return [(length - n) / length if length - n >= 3 else 0.0 for n in lengths]


@pytest.mark.parametrize("lengths", [LENGTHS, (20, 20, 4, 4, 10), (18, 17, 3)])
@pytest.mark.parametrize("fill", [0.0, -7.0])
def test_share_and_moved_mean_are_those_of_the_definition(lengths, fill):
    x, _ = sequences(lengths, fill=fill)
    finding = finding_of(examples.alone(examples.batch_norm(3), [x] * 4), "NS117")
    expected = shares(lengths)
    assert finding.measured == pytest.approx(sum(expected) / len(expected))
    tails = torch.tensor([round(20 * share) for share in expected])
    kept = torch.arange(20) < (20 - tails)[:, None, None]  # two equal columns at the end are no padding
    channel = x.double()[:, 0][kept[:, 0]]
    moved = abs(x.double()[:, 0].mean() - channel.mean()) / channel.std(correction=0)
    assert finding.details["mean_shift"] == pytest.approx(float(moved), rel=1e-5)
    assert finding.message == (
        f"{finding.measured:.0%} of the positions that 1 norm takes its statistics over are padding: means lie up to "
        f"{float(moved):.2g} standard deviations from those of the data"
    )


class Laid(nn.Module):
    """Brings data of another layout to a norm."""

    def __init__(self, norm, change):
        super().__init__()
        self.norm, self.change = norm, change

    def forward(self, x):
        return self.norm(self.change(x))


@pytest.mark.parametrize(
    ("order", "norm", "change"),
    [
        ((0, 2, 1), nn.BatchNorm1d(3), lambda x: x.transpose(1, 2)),
        ((0, 2, 1), nn.BatchNorm1d(3), lambda x: x.flatten(0, 1)),
        ((2, 0, 1), nn.BatchNorm1d(3), lambda x: x.flatten(0, 1)),
        ((0, 1, 2), nn.BatchNorm2d(3), lambda x: x[:, :, None]),
        ((0, 1, 2), nn.BatchNorm2d(3), lambda x: x[..., None]),
    ],
)
def test_every_layout_has_the_same_share(order, norm, change):
    x = sequences()[0] + 0.001 * torch.arange(4.0)[:, None, None]
    model = Laid(norm, change).train()
    case = Case(
        model, examples.mean_square, [x.permute(order).contiguous()] * 4, torch.optim.SGD(model.parameters(), 0.1)
    )
    finding = finding_of(case, "NS117")
    assert finding.measured == pytest.approx(sum(shares(LENGTHS)) / 4)
    assert finding.places == ("norm",)


def test_tails_of_one_length_and_norms_that_know_the_lengths_are_left_in_peace():
    assert is_quiet(examples.alone(examples.batch_norm(3), [sequences((10, 10, 10))[0]] * 4), "NS117")
    x, inside = sequences()
    case = examples.alone(layers.BatchNorm1d(3), [x] * 4)
    assert not is_quiet(case, "NS117")
    norm = case.model[0]
    case.model.forward = lambda x: norm(x, lengths=inside.sum(2)[:, 0])
    assert is_quiet(case, "NS117")


def test_a_padded_tail_longer_than_its_bound_matters_only_where_lengths_differ():
    case = rules.get("NS117").SICK[1]()
    fixed = [(torch.where(torch.arange(x.shape[2]) < 10, x, 0.0), y) for x, y in examples.data((12, 20))]
    assert checking.check(case, ["NS117"], gap=False)
    case.loader = fixed
    assert not checking.check(case, ["NS117"], gap=False)


class Twice(nn.Module):
    """One norm for sequences, and for their first positions with a tail of its own."""

    def __init__(self, tail):
        super().__init__()
        self.norm, self.tail = examples.batch_norm(3), tail

    def forward(self, x):
        return torch.cat([self.norm(x), self.norm(nn.functional.pad(x[:, :, :8], (0, self.tail)))], 2)


def test_tails_are_compared_at_the_same_place():
    """At each of two places all sequences have the same tail."""
    x, _ = sequences((16,) * 4)
    assert is_quiet(Case(Twice(12).train(), examples.mean_square, [x] * 4), "NS117")
    x, _ = sequences()
    assert finding_of(Case(Twice(12).train(), examples.mean_square, [x] * 4), "NS117").places == ("norm",)
