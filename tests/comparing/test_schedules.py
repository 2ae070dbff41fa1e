"""Another learning rate scales a schedule as a whole: at every step the rate is the factor times its own."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import SWALR

import normscope as ns
from kit import set_ups
from normscope._errors import UsageError
from normscope.comparing import ComparisonWarning
from normscope.comparing.rates import optimizer_of, scale_rates

MAKE = {
    "one cycle": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=20),
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 6, eta_min=0.02),
    "restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 4, eta_min=0.02),
    "cyclic": lambda o: schedules.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "averaged": lambda o: SWALR(o, swa_lr=0.01, anneal_epochs=4),
    "plateau": lambda o: schedules.ReduceLROnPlateau(o, patience=0, factor=0.5, min_lr=0.02),
    "polynomial": lambda o: schedules.PolynomialLR(o, 8),
    "one after another": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, total_iters=3), schedules.CosineAnnealingLR(o, 6, eta_min=0.02)], [3]
    ),
}


def rates(name, factor):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = MAKE[name](optimizer)

    def step(model, batch):
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step(*[1.0] * (name == "plateau"))
        return loss

    case = ns.Case(model, lambda model, batch: model(batch).square().mean(), [torch.ones(4, 2)], optimizer, step=step)
    if factor != 1:
        scale_rates(case, factor)
    found = []
    for _ in range(12):
        found.append(optimizer.param_groups[0]["lr"])
        case.step(model, case.loader[0])
    return found


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_a_schedule_is_scaled_as_a_whole(name):
    own = rates(name, 1)
    assert len(set(own)) > 2  # it does vary
    for factor in (0.1, 3.0):
        assert rates(name, factor) == pytest.approx([factor * rate for rate in own])


def test_the_optimizer_of_a_step_is_found():
    case = set_ups.make_case()
    mine, other = case.optimizer, torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)

    def step(model, batch):
        mine.step()
        other.step()

    made = ns.Case(case.model, case.loss_fn, case.loader, step=step)
    assert optimizer_of(made) is mine
    second = torch.optim.SGD(case.model.parameters(), 0.1)

    def two(model, batch):
        mine.step()
        second.step()

    assert optimizer_of(ns.Case(case.model, case.loss_fn, case.loader, step=two)) is None


def make_one_cycle_case(total=12, every=1):
    """Make a set-up whose schedule ends, and raises where it is stepped beyond its end."""
    case = set_ups.make_case()
    schedule = schedules.OneCycleLR(case.optimizer, 0.1, total_steps=total)
    done = []

    def step(model, batch):
        case.optimizer.zero_grad()
        loss = set_ups.entropy(model, batch)
        loss.backward()
        case.optimizer.step()
        done.append(loss)
        if len(done) % every == 0:
            schedule.step()
        return loss

    return ns.Case(case.model, set_ups.entropy, case.loader, step=step)


QUICK = {"seeds": 1, "workers": 1, "questions": ["speed"]}


def test_more_steps_than_the_schedule_has_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(UsageError, match=r"ends after 12 steps, and 13 are to be run: give --steps 12, or make"):
        ns.compare(make_one_cycle_case, steps=13, out=tmp_path, **QUICK)
    assert not (tmp_path / "run.json").exists()
    assert ns.compare(make_one_cycle_case, steps=12, out=tmp_path, **QUICK).plan.steps == 12


def test_where_no_steps_are_asked_for_there_are_as_many_as_the_schedule_has(tmp_path):
    with pytest.warns(ComparisonWarning, match="12 steps a run instead of 200, for there the schedule"):
        found = ns.compare(make_one_cycle_case, out=tmp_path, **QUICK)
    assert found.plan.steps == 12
    assert any("12 steps a run instead of 200" in note for note in found.notes)


def test_a_schedule_that_is_stepped_now_and_then_is_tried(tmp_path):
    said = r"OneCycleLR of 12 steps\) ends in training step 25 of 26: give --steps 25, or make the schedule longer"
    with pytest.raises(UsageError, match=said):
        ns.compare(lambda: make_one_cycle_case(12, 2), steps=26, out=tmp_path, **QUICK)
    assert ns.compare(lambda: make_one_cycle_case(12, 2), steps=25, out=tmp_path, **QUICK).plan.steps == 25


def make_restless_case():
    """Make a set-up whose schedule is stepped once in its first training step, and three times in each later step."""
    case = set_ups.make_case()
    schedule = schedules.SequentialLR(
        case.optimizer,
        [schedules.ConstantLR(case.optimizer, 1.0), schedules.OneCycleLR(case.optimizer, 0.1, total_steps=12)],
        [1],
    )
    done = []

    def step(model, batch):
        case.optimizer.zero_grad()
        loss = set_ups.entropy(model, batch)
        loss.backward()
        case.optimizer.step()
        for _ in range(3 if done else 1):
            schedule.step()
        done.append(loss)
        return loss

    return ns.Case(case.model, set_ups.entropy, case.loader, step=step)


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_a_schedule_within_another_that_is_stepped_more_often_than_seen_ends_in_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"ends in training step (\d+) of 9: give --steps \1, or make the schedule"):
        ns.compare(make_restless_case, steps=9, out=tmp_path, **QUICK)
    assert ns.compare(make_restless_case, steps=4, out=tmp_path, **QUICK).plan.steps == 4


def test_an_error_beside_a_schedule_stays_in_its_own_words(tmp_path):
    def make():
        case = make_one_cycle_case()
        step, done = case.step, []

        def raises(model, batch):
            done.append(batch)
            if len(done) == 3:
                raise ValueError("of the user's own")
            return step(model, batch)

        return ns.Case(case.model, set_ups.entropy, case.loader, step=raises)

    with pytest.raises(UsageError, match=r"training step 2 of the arm own .* of the user's own"):
        ns.compare(make, steps=4, out=tmp_path, **QUICK)
