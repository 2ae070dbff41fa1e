"""Two kinds of data through one norm: their distance by the formula, for several shapes."""

import pytest
import torch

from kit.findings import finding_of, is_quiet
from normscope.evidence import examples


def streams(shifts, *, deviations=(1.0, 1.0), size=32, updates=1):
    """A norm that two kinds of data go through, or through which each goes in an update of its own."""
    shifts = torch.tensor(shifts)
    first = examples.two_values(2.0, deviations[0], size, len(shifts))
    second = examples.two_values(2.0 + shifts, deviations[1], size, len(shifts))

    def losses(model, batch):
        yield examples.mean_square(model, first) + examples.mean_square(model, second)

    def alternating(model, batch):
        yield examples.mean_square(model, batch)

    if updates == 2:
        return examples.stepped(examples.alone(examples.batch_norm(len(shifts)), [first, second] * 2), alternating)
    return examples.stepped(examples.alone(examples.batch_norm(len(shifts)), [first] * 4), losses)


@pytest.mark.parametrize(
    ("shifts", "deviations", "size"),
    [([3.0, -3.0, 3.0], (1.0, 1.0), 32), ([0.0, 1.0, 4.0, -8.0, 2.0], (1.0, 2.0), 8), ([9.0] * 7, (3.0, 0.5), 50)],
)
def test_the_distance_is_that_of_the_means_in_mean_deviations(shifts, deviations, size):
    finding = finding_of(streams(shifts, deviations=deviations, size=size), "NS112")
    deviation = ((deviations[0] ** 2 + deviations[1] ** 2) / 2) ** 0.5
    expected = (torch.tensor(shifts, dtype=torch.float64).abs() / deviation).quantile(0.75)
    assert finding.measured == pytest.approx(float(expected), rel=1e-5)
    assert finding.message == (
        f"1 norm is given different data within one update: the means lie {float(expected):.2g} standard "
        "deviations apart"
    )
    assert finding.places == ("0",)


def test_one_kind_in_each_update_is_left_in_peace():
    assert is_quiet(streams([5.0, 5.0], updates=2), "NS112")


def test_only_the_norms_that_are_given_both_kinds_are_named():
    case = streams([5.0] * 4)
    case.model.append(examples.batch_norm(4))  # behind a norm both kinds have the mean 0
    assert finding_of(case, "NS112").places == ("0",)


def test_steps_without_an_update_are_not_judged():
    case = streams([5.0] * 4)
    case.step = lambda model, batch: (model(batch).sum() + model(batch + 9).sum()).backward()
    assert is_quiet(case, "NS112")
