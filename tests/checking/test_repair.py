"""What a repair says of itself: tensors of the state dict, and what no state dict holds."""

import copy

import pytest
import torch
from check_setups import other_means

from normscope import checking, rules
from normscope.checking import repair
from normscope.evidence import examples


def notes_of(case, code, *, unsafe=True):
    return repair.repair(case, checking.check(case, [code], gap=False), unsafe=unsafe)


@pytest.mark.parametrize(
    ("code", "index", "tensors", "beyond"),
    [
        ("NS108", 0, 0, ["momentum of 3 modules"]),
        ("NS103", 0, 3, []),
        ("NS123", 0, 0, ["the optimizer's groups"]),
        ("NS104", 0, 0, ["the loader"]),
        ("NS122", 0, 6, ["requires_grad of 3 modules", "the optimizer's groups"]),
        ("NS107", 0, 9, []),
    ],
)
def test_changes_are_counted_in_the_state_dict_and_beyond_it(code, index, tensors, beyond):
    case = rules.get(code).SICK[index]()
    (note,) = notes_of(case, code)
    assert note.done
    assert note.tensors == tensors
    assert list(note.beyond) == beyond


def test_a_fix_that_is_not_made_changes_nothing():
    (note,) = notes_of(rules.get("NS108").SICK[0](), "NS108", unsafe=False)
    assert (note.done, note.tensors, note.beyond) == ("", 0, ())
    assert "unsafe" in note.why_not


def test_a_fix_that_raises_is_told_and_the_next_is_made(monkeypatch):
    case = examples.alone(examples.batch_norm(3, momentum=0.99), [examples.two_values(1.0, 2.0, 8, 3)] * 3)
    case.model[0].running_var[0] = -1.0

    def broken(self, case, finding):
        raise ValueError("two\nlines")

    monkeypatch.setattr(type(rules.get("NS103")), "repair", broken)
    found = checking.check(case, ["NS103", "NS108"], gap=False)
    first, second = repair.repair(case, found, unsafe=True)
    assert first.why_not.startswith("the fix failed: ValueError: two lines")
    assert second.done.startswith("set momentum to 0.01 in 1 norm;")


def test_only_models_whose_state_changed_are_saved(tmp_path):
    case = rules.get("NS107").SICK[0]()
    before = repair.states(case)
    saved, notes = repair.save(case, before, tmp_path / "x.pt")
    assert (saved, notes) == ([], [f"{tmp_path / 'x.pt'} was not written: no tensor of a state dict was changed"])
    notes_of(case, "NS107")
    saved, notes = repair.save(case, before, tmp_path / "x.pt")
    assert [line.partition(":")[0] for line in saved] == [str(tmp_path / "x.averaged.pt")]
    assert notes == []
    state = torch.load(tmp_path / "x.averaged.pt")
    assert all(torch.equal(value, state[key]) for key, value in case.averaged.state_dict().items())


def test_tensors_are_compared_by_their_bits():
    state = {"a": torch.tensor([1.0, float("nan")]), "b": torch.tensor([0.0])}
    assert repair.changed(state, copy.deepcopy(state)) == 0
    assert repair.changed(state, {"a": state["a"], "b": torch.tensor([-0.0])}) == 1
    assert repair.changed(state, {"a": state["a"]}) == 1
    assert repair.changed(state, state | {"b": torch.tensor([1.0]), "c": torch.ones(1)}) == 2


def recalibration_of(case):
    rule = rules.get("NS102")
    (note,) = repair.repair(case, [rule.finding("stale", ["0"])], unsafe=True)
    return note


def test_a_fix_that_harms_evaluation_is_taken_back_and_that_is_said():
    case = other_means()
    before = repair.states(case)["model"]
    loaders, norm = (case.loader, case.eval_loader), case.model[0]
    note = recalibration_of(case)
    assert note.done == ""
    assert note.why_not.startswith("recalibrated 1 norm on the training data, and took it back: the loss of evaluation")
    assert repair.changed(before, repair.states(case)["model"]) == 0
    assert (case.loader, case.eval_loader) == loaders
    assert case.model[0] is norm
    training, evaluation = note.losses
    assert (training.of, evaluation.of) == ("training", "evaluation")
    assert training.before == pytest.approx(training.after)
    assert evaluation.before == pytest.approx(1.0, abs=0.01)
    assert evaluation.after > 1.2


def test_a_fix_that_helps_evaluation_stands_with_its_losses():
    case = other_means(eval_loader=None)
    note = recalibration_of(case)
    assert note.done == "recalibrated 1 norm on the training data"
    evaluation = note.losses[1]
    assert evaluation.before > 10
    assert evaluation.after == pytest.approx(1.0, abs=0.01)


def test_the_averaged_weights_are_evaluated_too():
    case = rules.get("NS107").SICK[1]()  # initial statistics at the averaged weights
    (note,) = notes_of(case, "NS107")
    averaged = note.losses[-1]
    assert note.done
    assert averaged.of == "evaluation of the averaged weights"
    assert averaged.after < averaged.before


def test_a_conversion_that_would_leave_a_sign_function_is_refused():
    case = examples.healthy(lambda: examples.mlp(width=6), shape=(12,), size=4)
    (note,) = notes_of(case, "NS105")
    assert "6 values a sample" in note.why_not
    assert note.losses == ()
