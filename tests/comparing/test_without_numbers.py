"""Where a run gives no number the answer says why, and where numbers are equal it says so."""

import math
import warnings

import pytest
import torch

import normscope as ns
from kit import set_ups
from normscope._errors import UsageError

QUICK = {"seeds": 1, "steps": 6, "workers": 1}


def with_loss(change, **made):
    def make():
        case = set_ups.make_case()
        loss_fn = lambda model, batch: change(set_ups.entropy(model, batch))  # noqa: E731
        return ns.Case(case.model, loss_fn, case.loader, case.optimizer, case.eval_loader, **made)

    return make


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda loss: loss * math.nan, "its loss is no finite number at the first step"),
        (lambda loss: loss + math.inf, "its loss is no finite number at the first step"),
        (lambda loss: loss - loss.detach(), "its loss does not fall"),
        (lambda loss: loss - 3 * loss.detach(), "its loss does not fall"),
    ],
    ids=["nan", "inf", "zero", "negative and rising"],
)
def test_a_loss_that_cannot_fall_is_told(change, said, tmp_path):
    found = ns.compare(with_loss(change), out=tmp_path, questions=["speed", "generalisation", "step", "rates"], **QUICK)
    told = str(found)
    assert f"does not learn within 6 steps: {said}" in told
    for word in ("not measured", "nan", "NaN", "no bound", "(−", "falls by −"):
        assert word not in told
    for answer in found.answers_in_order:
        assert answer.sentence.startswith(("Not measurable: ", "Described, not judged (1 seed): "))


def test_equal_numbers_are_no_difference(tmp_path):
    arms = {"own": "own", "same": lambda model: None}
    found = ns.compare(set_ups.make_case, arms, out=tmp_path, questions=["speed", "gradients"], **QUICK)
    for answer in found.answers_in_order:
        assert answer.sentence.startswith("Described, not judged (1 seed): no difference (")
        assert "in the arm same" in answer.sentence


def test_a_step_whose_first_moves_nothing_is_run(tmp_path):
    """A warm-up from 0 is no sign that the optimizer holds other parameters."""

    def make():
        case = set_ups.make_case()
        schedule = torch.optim.lr_scheduler.LambdaLR(case.optimizer, lambda step: min(1.0, step / 2))

        def step(model, batch):
            case.optimizer.zero_grad()
            loss = set_ups.entropy(model, batch)
            loss.backward()
            case.optimizer.step()
            schedule.step()
            return loss

        return ns.Case(case.model, case.loss_fn, case.loader, step=step)

    found = ns.compare(make, out=tmp_path, questions=["speed"], **QUICK)
    assert found.evidence.select(probe="training", name="loss").height == 12


@pytest.mark.parametrize(
    ("change", "optimizer", "said"),
    [
        (lambda loss: (loss, 1), torch.optim.Adam, "loss_fn returns a tuple: it must return a scalar tensor"),
        (lambda loss: loss.expand(3), torch.optim.Adam, r"loss_fn returns a tensor of shape \(3,\)"),
        (lambda loss: loss, torch.optim.LBFGS, "LBFGS needs a closure: give the set-up a step"),
    ],
)
def test_what_cannot_be_stepped_is_named(change, optimizer, said, tmp_path):
    def make():
        case = with_loss(change)()
        return case.model, case.loss_fn, case.loader, optimizer(case.model.parameters())

    with pytest.raises(UsageError, match=f"^{said}"):
        ns.compare(make, out=tmp_path, questions=["speed"], **QUICK)


def test_a_step_that_fails_names_its_arm_and_seed(tmp_path):
    def make():
        case = set_ups.make_case()
        made = []

        def step(model, batch):
            made.append(len(made))
            if len(made) > 4:
                raise ValueError("the schedule is over")
            case.optimizer.zero_grad()
            loss = set_ups.entropy(model, batch)
            loss.backward()
            case.optimizer.step()
            return loss

        return ns.Case(case.model, case.loss_fn, case.loader, case.optimizer, step=step)

    said = r"training step 4 of the arm own \(seed 0\) raised ValueError: the schedule is over"
    with pytest.raises(UsageError, match=said):
        ns.compare(make, out=tmp_path, questions=["speed"], **QUICK)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arms": "own,none"}, "arms are a list of names"),
        ({"questions": "speed"}, "questions are a list of codes"),
        ({"rates": ["1"]}, "--rates are numbers"),
        ({"steps": 2.5}, "--steps is a whole number"),
        ({"seeds": "3"}, "--seeds is a whole number"),
    ],
)
def test_arguments_of_another_kind_get_one_line(options, said, tmp_path):
    with warnings.catch_warnings(), pytest.raises(UsageError, match=said):
        ns.compare(set_ups.make_case, out=tmp_path, **QUICK | options)
    with pytest.raises(UsageError, match="name each of them"):
        ns.compare({"": set_ups.make_case, "b": set_ups.make_case}, out=tmp_path, **QUICK)


def test_a_run_that_diverges_before_any_update_is_no_set_up_that_updates_nothing(tmp_path):
    def make_case():
        case = set_ups.make_case()

        def step(model, batch):  # as a gradient scaler does, which skips an update whose gradients are infinite
            return set_ups.entropy(model, batch) * float("inf")

        return ns.Case(case.model, set_ups.entropy, case.loader, case.optimizer, step=step)

    found = ns.compare(make_case, seeds=1, steps=3, workers=1, questions=["speed"], out=tmp_path)
    assert found.evidence.select(probe="training", name="diverged")["value"].to_list() == [1.0, 1.0]
