"""A run that lies in the folder is taken up only if it is of the same set-up: its text, and its first step."""

import json
import sys

import pytest
import torch

import normscope as ns
from kit import set_ups
from normscope._errors import StoreError, UsageError

QUICK = {"seeds": 1, "steps": 3, "workers": 1, "questions": ["speed"]}


def factory(rate):
    """Return a function whose text is always the same, with another learning rate captured."""

    def make_case():
        case = set_ups.make_case()
        case.optimizer.param_groups[0]["lr"] = rate
        return case

    return make_case


def losses_of(found):
    return found.evidence.select(probe="training", name="loss")["value"].to_list()


def test_a_captured_value_that_has_changed_is_noticed(tmp_path):
    ns.compare(factory(0.1), out=tmp_path, **QUICK)
    assert ns.compare(factory(0.1), out=tmp_path, **QUICK).evidence.seeds == (0,)  # the same is taken up
    with pytest.raises(StoreError, match=r"something that the factory uses has changed since.*--fresh"):
        ns.compare(factory(0.3), out=tmp_path, **QUICK)


def test_fresh_deletes_the_other_comparison_and_nothing_else(tmp_path):
    first = losses_of(ns.compare(factory(0.1), out=tmp_path, **QUICK))
    (tmp_path / "mine.txt").write_text("kept")
    again = ns.compare(factory(0.3), out=tmp_path, fresh=True, **QUICK)
    assert (tmp_path / "mine.txt").read_text() == "kept"
    assert losses_of(again) != first
    untouched = ns.compare(factory(0.3), out=tmp_path, fresh=True, **QUICK)  # of the same there is nothing to delete
    assert untouched.store.provenance == again.store.provenance


def test_a_run_without_a_complete_cell_makes_room(tmp_path):
    ns.compare(factory(0.1), out=tmp_path, **QUICK)
    for mark in tmp_path.glob("cell-*.json"):
        mark.unlink()
    assert ns.compare(factory(0.3), out=tmp_path, **QUICK).evidence.seeds == (0,)


def test_the_folder_of_something_else_is_never_deleted(tmp_path):
    ns.records.Store.create(tmp_path, {"study": "mine"}).close()
    with pytest.raises(StoreError):
        ns.compare(factory(0.1), out=tmp_path, fresh=True, **QUICK)
    assert json.loads((tmp_path / "run.json").read_text())["config"] == {"study": "mine"}


def test_steps_that_move_nothing_are_refused(tmp_path):
    def make_case():
        case = set_ups.make_case()

        def step(model, batch):
            return set_ups.entropy(model, batch)

        return ns.Case(case.model, set_ups.entropy, case.loader, case.optimizer, step=step)

    with pytest.raises(UsageError, match=r"(moves|move) no parameter of the model"):
        ns.compare(make_case, out=tmp_path, **QUICK)


def test_a_model_that_is_handed_over_in_evaluation_mode_is_told(tmp_path):
    def make_case():
        case = set_ups.make_case()
        case.model.eval()
        return case

    found = ns.compare(make_case, out=tmp_path, **QUICK)
    assert any("handed over in evaluation mode" in said for said in found.said_in_runs)


def test_rates_that_change_nothing_are_told(tmp_path):
    def make_case():
        case = set_ups.make_case()

        def step(model, batch):
            case.optimizer.param_groups[0]["lr"] = 0.05
            case.optimizer.zero_grad()
            loss = set_ups.entropy(model, batch)
            loss.backward()
            case.optimizer.step()
            return loss

        return ns.Case(case.model, set_ups.entropy, case.loader, case.optimizer, step=step)

    found = ns.compare(make_case, out=tmp_path / "a", rates=[0.1, 1], **QUICK)
    assert any("with its norms trains alike at all learning rates" in note for note in found.notes)
    moved = ns.compare(set_ups.make_case, out=tmp_path / "b", rates=[0.1, 1], **QUICK)
    assert not any("trains alike" in note for note in moved.notes)


def test_a_factory_is_given_no_words_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["normscope", "compare", "train.py:make_case"])
    seen = []

    def make_case():
        seen.append(list(sys.argv))
        return set_ups.make_case()

    ns.compare(make_case, out=tmp_path, **QUICK)
    assert set(map(tuple, seen)) == {("normscope",)}
    assert sys.argv == ["normscope", "compare", "train.py:make_case"]


def test_the_first_step_tells_weights_batches_and_updates_apart():
    from normscope.comparing.fingerprint import first_step

    def digest(change=lambda case: None):
        torch.manual_seed(0)
        case = set_ups.make_case()
        change(case)
        return first_step(case, 0)

    def other_weights(case):
        with torch.no_grad():
            case.model[0].bias[0] += 1e-3

    def other_rate(case):
        case.optimizer.param_groups[0]["lr"] = 0.2

    def other_data(case):
        case.loader.dataset.tensors[0].mul_(1.001)

    def without_update(case):  # as a schedule that warms up from 0 begins
        case.optimizer.param_groups[0]["lr"] = 0.0

    def other_data_without_update(case):
        without_update(case)
        other_data(case)

    changes = (other_weights, other_rate, other_data, without_update, other_data_without_update)
    found = [digest(), digest(), *map(digest, changes)]
    assert found[0] == found[1]
    assert len(set(found)) == 6
