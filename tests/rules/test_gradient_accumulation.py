"""Micro-batches: their number and their values counted by hand, for norms with positions and without."""

import pytest

from kit.findings import finding_of, is_quiet, repaired
from normscope import layers
from normscope.evidence import examples


def accumulating(parts, *, size=32, shape=(12,), shift=0.0, norm=None, channels=None):
    norm = norm if norm is not None else examples.batch_norm(shape[0])
    x = examples.two_values(3.0, 2.0, size, shape[0]).view(size, shape[0], *[1] * (len(shape) - 1)).expand(size, *shape)

    def losses(model, batch):
        for index, part in enumerate(batch.chunk(parts)):
            yield examples.mean_square(model, part + shift * index)

    return examples.stepped(examples.alone(norm, [x.contiguous()] * 4), losses)


@pytest.mark.parametrize(("parts", "size", "shape"), [(4, 32, (12,)), (2, 10, (3,)), (5, 30, (2, 9)), (3, 6, (5, 4))])
def test_calls_and_values_are_counted(parts, size, shape):
    case = accumulating(parts, size=size, shape=shape)
    finding = finding_of(case, "NS113")
    values = size // parts * (shape[1] if len(shape) > 1 else 1)
    assert (finding.measured, finding.bound, finding.details["calls"]) == (values, 64, parts)
    assert finding.message == (
        f"1 norm is called {parts} times between two updates, on {values} values a channel or more"
    )
    assert repaired(case, "NS113") == f"converted 1 norm to update once for {parts} micro-batches"
    assert case.model[0].accumulate == parts
    before = case.model[0].running_mean.clone()
    case.model[0].num_batches_tracked.zero_()
    case.step(case.model, case.loader[0])
    assert case.model[0].num_batches_tracked == 1
    assert not before.equal(case.model[0].running_mean)


def test_of_updates_with_more_and_fewer_micro_batches_the_most_are_told():
    x = examples.two_values(3.0, 2.0, 32, 12)

    def losses(model, batch):
        return (examples.mean_square(model, part) for part in batch.split(8))

    case = examples.stepped(examples.alone(examples.batch_norm(12), [x, x[:24], x[:24], x]), losses)
    assert finding_of(case, "NS113").details["calls"] == 4


def test_other_kinds_of_data_are_no_micro_batches():
    # Means 0, s, 2 s and 3 s have a variance of 1.25 s^2; with 0.25 of the variance within, NS112 finds two kinds.
    bound = 2.0 * 0.2**0.5
    for shift in (0.98 * bound, 1.02 * bound):
        case = accumulating(4, shift=shift)
        assert is_quiet(case, "NS113") is (shift > bound)
        assert is_quiet(case, "NS112") is (shift < bound)


def test_norms_that_pool_are_left_in_peace():
    assert is_quiet(accumulating(4, norm=layers.BatchNorm1d(12, accumulate=4)), "NS113")
    assert not is_quiet(accumulating(4, norm=layers.BatchNorm1d(12)), "NS113")


def test_a_norm_that_one_pass_calls_several_times_does_not_accumulate():
    case = accumulating(1, size=8)
    norm = case.model[0]
    case.model.forward = lambda x: norm(norm(x))
    assert is_quiet(case, "NS113")


@pytest.mark.parametrize("whole", [True, False])
def test_two_views_in_one_loss_are_no_micro_batches(whole):
    case = accumulating(1, size=8)
    part = (lambda model: model) if whole else (lambda model: model[0])

    def step(model, batch):
        case.optimizer.zero_grad()
        (part(model)(batch).square().mean() + part(model)(batch.flip(0)).square().mean()).backward()
        case.optimizer.step()

    case.step = step
    assert is_quiet(case, "NS113")

    def in_turn(model, batch):
        case.optimizer.zero_grad()
        for view in (batch, batch.flip(0)):
            part(model)(view).square().mean().backward()
        case.optimizer.step()

    case.step = in_turn
    assert finding_of(case, "NS113").details["calls"] == 2


def test_steps_without_an_update_do_not_count():
    case = examples.healthy(examples.mlp)
    case.step = lambda model, batch: examples.loss_fn(model, batch).backward()
    assert is_quiet(case, "NS112")
    assert is_quiet(case, "NS113")
