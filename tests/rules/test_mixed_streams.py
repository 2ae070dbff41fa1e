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
    [
        ([3.0, -3.0, 3.0], (1.0, 1.0), 32),
        ([0.0, 1.0, 4.0, -8.0, 2.0], (1.0, 2.0), 8),
        ([9.0] * 7, (3.0, 0.5), 50),
        ([0.0] * 4, (0.1, 1.0), 16),
    ],
)
def test_the_divergence_is_that_of_two_normal_distributions(shifts, deviations, size):
    finding = finding_of(streams(shifts, deviations=deviations, size=size), "NS112")
    first, second = (deviation**2 + 1e-5 for deviation in deviations)
    several = []
    for shift in torch.tensor(shifts, dtype=torch.float64):
        total = (first + second) / 2 + (shift / 2) ** 2
        # What evaluation puts out of each kind, against the standard normal that training puts out.
        out = [torch.distributions.Normal(shift / 2 / total**0.5, (v / total) ** 0.5) for v in (first, second)]
        standard = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
        several.append(sum(torch.distributions.kl_divergence(one, standard) for one in out) / 2)
    assert finding.measured == pytest.approx(float(torch.stack(several).quantile(0.75)), rel=1e-4)
    deviation = ((first + second) / 2) ** 0.5
    means = float((torch.tensor(shifts, dtype=torch.float64).abs() / deviation).quantile(0.75))
    ratio = (max(first, second) / min(first, second)) ** 0.5
    assert finding.details == {"means": pytest.approx(means, rel=1e-4), "deviations": pytest.approx(ratio, rel=1e-4)}
    assert finding.message == (
        f"1 norm is given different data within one update: in the upper quartile over channels means lie {means:.2g} "
        f"standard deviations apart, and standard deviations are as 1 to {ratio:.2g}"
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


def test_levels_of_one_pass_are_no_passes_of_one_update():
    case = streams([5.0] * 4)
    norm, case.step = case.model[0], None
    case.model.forward = lambda x: torch.cat([norm(x), norm(x + 5)])
    assert is_quiet(case, "NS112")
    case.loss_fn = lambda model, batch: (
        model[0](batch).mean() + model[0](batch + 5).mean()
    )  # nothing tells passes apart
    assert not is_quiet(case, "NS112")


def test_steps_of_two_sequences_are_compared_step_by_step():
    case = streams([0.0] * 4)
    norm, case.step = case.model[0], None
    case.model.forward = lambda x, steps: torch.cat([norm(x + 9 * step) for step in range(steps)])
    case.loss_fn = lambda model, batch: model(batch, 3).mean() + model(batch, 1).mean()
    assert is_quiet(case, "NS112")
    case.loss_fn = lambda model, batch: model(batch, 3).mean() + model(batch + 5, 1).mean()
    assert not is_quiet(case, "NS112")


@pytest.mark.parametrize("size", [2, 4, 8])
def test_small_passes_of_one_kind_differ_by_chance(size):
    for seed in range(6):
        stream = torch.Generator().manual_seed(seed)
        case = examples.alone(examples.batch_norm(8), [torch.randn(4, size, 8, generator=stream) for _ in range(4)])

        def losses(model, batch):
            yield from (examples.mean_square(model, part) for part in batch)

        assert is_quiet(examples.stepped(case, losses), "NS112")


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_real_and_generated_batches_before_a_generators_update(scale):
    """The pass in which the generator learns goes through the norm as well, after the update of the discriminator."""
    case = streams([0.0] * 4)

    def step(model, batch):
        real = torch.randn(32, 4, generator=stream)
        fakes = [scale * torch.randn(32, 4, generator=stream) for _ in range(2)]
        case.optimizer.zero_grad()
        (model(real).square().mean() + model(fakes[0]).square().mean()).backward()
        case.optimizer.step()
        model(fakes[1]).square().mean().backward()

    stream = torch.Generator().manual_seed(0)
    case.step = step
    assert is_quiet(case, "NS112") is (scale == 1.0)
    assert is_quiet(case, "NS135")
