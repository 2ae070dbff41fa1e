"""What a repair says of itself: tensors of the state dict, and what no state dict holds."""

import copy

import pytest
import torch

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
    assert second.done == "set momentum to 0.01 in 1 norm"


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
