"""Runs that lie in a folder serve every comparison of the same set-up: only what is missing is run."""

import json

import polars as pl
import pytest
from torch import nn

import normscope as ns
from kit import set_ups
from normscope._errors import StoreError
from normscope.comparing import Comparison
from normscope.comparing.described import NOT_CLASSES
from normscope.comparing.plan import Plan
from normscope.comparing.reuse import run_of, serving

QUICK = {"seeds": 1, "steps": 4, "workers": 1, "questions": ["speed"]}
ARM = {"name": "own", "does": "own", "made_by": "train.py:make"}


def compared(out, arms=("own", "none"), make=set_ups.make_case, **options):
    return ns.compare(make, arms, out=out, **QUICK | options)


def frame_of(found):
    """The records, but for times, names of cells, and what is recorded of the model for the sake of a probe."""
    of_a_probe = (pl.col("probe") == "model") & pl.col("name").cast(pl.String).is_in(NOT_CLASSES)
    return found.evidence.frame.filter((pl.col("probe") != "cost") & ~of_a_probe).drop("cell")


def marks(folder):
    """What each complete run says of itself; the time that it took is never twice the same."""
    return {path.name: path.read_text() for path in folder.glob("cell-*.json")}


def run_anew(folder, **options):
    """Compare once more in a folder, and return the runs that were trained for it, as (arm, seed, rate)."""
    before = marks(folder)
    found = compared(folder, **options)
    after = marks(folder)
    assert before.items() <= after.items()  # nothing that was there is run again, or deleted
    cells = [json.loads(text)["cell"] for name, text in after.items() if name not in before]
    return found, sorted((cell["arm"], cell["seed"], cell["point"]["rate"]) for cell in cells)


@pytest.mark.parametrize(
    ("first", "then", "trained"),
    [
        ({}, {"arms": ["own", "none", "layer"]}, [("layer", 0, 1)]),
        ({}, {"arms": ["layer", "none"]}, [("layer", 0, 1)]),
        ({"arms": ["own", "none", "layer"]}, {}, []),
        ({"rates": [1]}, {"rates": [1, 3]}, [("none", 0, 3), ("own", 0, 3)]),
        ({"rates": [1, 3]}, {}, []),
        ({"questions": ["gradients", "speed"]}, {}, []),
        ({}, {"seeds": 2}, [("none", 1, 1), ("own", 1, 1)]),
        (
            {"seeds": 1, "rates": [3]},
            {"seeds": 1, "rates": [3], "questions": ["units"]},
            [("none", 0, 1), ("own", 0, 1)],
        ),
    ],
    ids=["arm more", "other arm", "arm less", "rate more", "rate less", "question less", "seed more", "probe more"],
)
def test_only_what_is_missing_is_trained_and_the_records_are_those_of_a_folder_of_its_own(
    first, then, trained, tmp_path
):
    compared(tmp_path / "grown", **first)
    found, new = run_anew(tmp_path / "grown", **then)
    assert new == trained
    assert frame_of(found).equals(frame_of(compared(tmp_path / "alone", **then)))
    assert frame_of(found).equals(frame_of(Comparison(tmp_path / "grown")))


def test_what_a_step_costs_is_measured_for_all_arms_in_turn(tmp_path):
    compared(tmp_path, questions=["cost"])
    found = compared(tmp_path, ["own", "none", "layer"], questions=["cost"])
    assert set(found.evidence.select(probe="cost")["arm"]) == {"own", "none", "layer"}
    fewer = compared(tmp_path, ["own", "layer"], questions=["cost"])
    assert set(fewer.evidence.select(probe="cost")["arm"]) == {"own", "layer"}


def test_an_arm_of_the_same_name_that_is_another_is_no_replicate(tmp_path):
    compared(tmp_path, {"own": "own", "x": "layer"})
    _, new = run_anew(tmp_path, arms={"own": "own", "x": "group"})
    assert new == [("x", 0, 1)]


def test_a_change_of_the_users_that_has_changed_is_refused(tmp_path):
    def widen(change):
        def alter(model):
            model[3].p = change

        return {"own": "own", "x": alter}

    compared(tmp_path, widen(0.1))
    assert run_anew(tmp_path, arms=widen(0.1))[1] == []
    with pytest.raises(StoreError, match="something that the factory uses has changed since"):
        compared(tmp_path, widen(0.5))


def test_a_further_factory_joins_and_another_one_alone_is_refused(tmp_path):
    def make_wide():
        case = set_ups.make_case()
        nn.init.zeros_(case.model[0].bias)
        return case

    one, two = {"bn": set_ups.make_case}, {"plain": set_ups.make_case_without_norms}
    ns.compare(one | two, out=tmp_path, **QUICK)
    before = marks(tmp_path)
    found = ns.compare(one | two | {"wide": make_wide}, out=tmp_path, **QUICK)
    assert before.items() <= marks(tmp_path).items()
    assert len(marks(tmp_path)) == 3
    assert list(found.arms) == ["bn", "plain", "wide"]
    with pytest.raises(StoreError, match="it is of another factory"):
        compared(tmp_path, make=set_ups.make_scheduled_case)
    assert len(marks(tmp_path)) == 3


def test_other_lengths_are_refused_with_both_numbers(tmp_path):
    compared(tmp_path)
    with pytest.raises(StoreError, match=r"4 steps a run, not 7\).*--fresh"):
        compared(tmp_path, steps=7)
    with pytest.raises(StoreError, match=r"8 batches an evaluation, not 2\)"):
        compared(tmp_path, batches=2)


def test_a_run_serves_for_another_that_reads_no_more_and_differs_in_nothing_else():
    def run(steps=6, seed=0, rate=1.0, readings=("a",), when="some", **arm):
        known = {code: {"when": when, "options": {}} for code in readings}
        return run_of(Plan((), steps=steps, readings=known), ARM | arm, seed, rate)

    wanted = run()
    served = [run(), run(readings=("a", "b")), run(readings="abc")]
    assert all(serving([wanted], [each]) == {wanted.id: each} for each in served)
    assert serving([wanted], served[::-1]) == {wanted.id: served[0]}  # that with the fewest probes
    others = [
        run(steps=7), run(seed=1), run(rate=3.0), run(readings=()), run(readings=("b",)), run(when="often"),
        run(name="x"), run(does="none"), run(made_by="other.py:make"),
    ]  # fmt: skip
    assert serving([wanted], others) == {}


def test_probes_are_no_part_of_runs_in_which_none_is_read():
    few, many = Plan(()), Plan((), readings={"a": {"when": "some", "options": {}}})
    assert run_of(few, ARM, 0, 3.0) == run_of(many, ARM, 0, 3.0)
    assert run_of(few, ARM | {"does": "population"}, 0, 1.0) == run_of(many, ARM | {"does": "population"}, 0, 1.0)
    assert run_of(few, ARM, 0, 1.0) != run_of(many, ARM, 0, 1.0)
