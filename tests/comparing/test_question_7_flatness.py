"""The question of flatness: eigenvalues and sharpness are known by hand."""

import math
import re
from dataclasses import replace

import polars as pl
import pytest

from kit.planted_comparison import ARMS, PAIR, compared, judged, question
from normscope.comparing import Pair
from normscope.records.answers import headline, tried


def curved(own, none, *, frozen=None, sharp=(1.0, 1.0), **more):
    """Eigenvalues at the last step; at the first they are 100 in both arms."""
    values = {}
    for arm, end, rise in (("own", own, sharp[0]), ("none", none, sharp[1])):
        end_frozen = frozen if arm == "own" and frozen is not None else end
        values[arm] = {
            ("curvature", "top_eigenvalue@train"): [100.0, 50.0, end],
            ("curvature", "top_eigenvalue@frozen"): [100.0, 50.0, end_frozen],
            ("curvature", "adaptive_sharpness@train"): [1.0, 1.0, rise],
            ("curvature", "adaptive_sharpness@frozen"): [1.0, 1.0, rise],
            ("curvature", "converged@train"): [1.0, 1.0, 1.0],
        }
    found = compared(values, **more)
    return found if frozen is not None else replace(found, frame=_alike(found.frame))


def _alike(frame):
    """Give both modes the same numbers, as the probe does where there is no norm to freeze."""
    train = frame.filter(pl.col("name").str.ends_with("@train") & (pl.col("name") != "converged@train"))
    renamed = train.with_columns(pl.col("name").str.replace("@train", "@frozen"))
    return pl.concat([frame.filter(~pl.col("name").str.ends_with("@frozen")), renamed])


def test_a_quarter_of_the_eigenvalue_is_flatter():
    verdict = judged("flatness", curved(4.0, 16.0, sharp=(0.1, 0.4)))
    assert verdict.outcome.value == "holds"
    assert verdict.effect.point == pytest.approx(math.log(4), abs=0.03)
    assert "times smaller" in verdict.finding
    assert "norms as in training" in verdict.finding
    assert re.match(
        r"Largest eigenvalue of the Hessian at the last step: without norms 1[56].*, with its norms [34]\.",
        verdict.reason,
    )
    assert all(part.outcome.value == "holds" for part in tried(verdict))


def test_a_larger_one_is_the_opposite_and_measures_that_disagree_are_named():
    verdict = judged("flatness", curved(16.0, 4.0, sharp=(0.1, 0.4)))
    assert verdict.outcome.value == "opposite"
    assert re.search(r"But holds with adaptive sharpness \((3\.9|4).* smaller", headline(verdict))


def test_the_mode_is_a_condition_only_where_it_makes_a_difference():
    alike, apart = judged("flatness", curved(4.0, 16.0)), judged("flatness", curved(4.0, 16.0, frozen=64.0))
    assert (len(alike.parts), len(apart.parts)) == (1, 3)
    assert "But opposite with norms with running statistics (" in headline(apart)


def test_eigenvalues_that_are_not_positive_are_left_out_and_said_to_be():
    evidence = curved(4.0, 16.0)
    last = (pl.col("name") == "top_eigenvalue@train") & (pl.col("step") == 99) & (pl.col("arm") == "own")
    frame = evidence.frame.with_columns(
        pl.when(last & (pl.col("seed") == 0)).then(-pl.col("value")).otherwise(pl.col("value")).alias("value")
    )
    verdict = judged("flatness", replace(evidence, frame=frame))
    assert verdict.effect.n == 4
    assert "1 of the 10 values is not positive and left out." in verdict.reason
    turned = frame.with_columns(pl.col("value").abs() * pl.when(pl.col("probe") == "curvature").then(-1).otherwise(1))
    assert "no largest eigenvalue is positive" in judged("flatness", replace(evidence, frame=turned)).why


def test_a_run_that_ended_early_has_no_end():
    """What the probe read at the first step is not the sharpness at the end."""
    evidence = curved(4.0, 16.0)
    late = (pl.col("probe") == "curvature") & (pl.col("step") > 0) & (pl.col("seed") < 2) & (pl.col("arm") == "own")
    verdict = judged("flatness", replace(evidence, frame=evidence.frame.filter(~late)))
    assert verdict.effect.n == 3
    assert verdict.effect.point == pytest.approx(math.log(4), abs=0.03)


def test_an_arm_in_which_every_run_ended_early_has_no_end_either():
    evidence = curved(4.0, 16.0)
    late = (pl.col("probe") == "curvature") & (pl.col("step") > 0) & (pl.col("arm") == "own")
    verdict = judged("flatness", replace(evidence, frame=evidence.frame.filter(~late)))
    assert verdict.outcome.value == "not measurable"
    assert verdict.effect.n == 0


def test_both_arms_must_learn():
    verdict = judged("flatness", curved(4.0, 16.0, learn=["own"]))
    assert verdict.outcome.value == "not measurable"
    assert "The network without norms learns" in verdict.why


def test_a_probe_that_was_left_out_is_named():
    verdict = judged("flatness", compared({}))
    assert headline(verdict) == "Not measurable: the probe curvature was left out to keep the budget."


def test_an_arm_that_is_not_watched_is_compared_only_where_there_is_no_other():
    arms = {**ARMS, "population": "with batch norm of the population"}
    aside = Pair("own", "population", (arms["own"], arms["population"]))
    evidence = curved(4.0, 16.0, arms=arms)
    asked = question("flatness", arms)
    assert list(asked.contrasts(evidence, aside)) == []
    alone = replace(evidence, settings={**evidence.settings, "arms": {k: arms[k] for k in ("own", "population")}})
    alone = replace(alone, frame=alone.frame.filter(pl.col("arm") != "none"))
    verdict = judged("flatness", alone, [replace(aside, headline=True)])
    assert "the probe curvature read nothing but with its norms" in headline(verdict)


def test_the_table_has_the_numbers_of_every_arm():
    (table,) = question("flatness").tables(curved(4.0, 16.0), [PAIR])
    assert table.columns == ("", "With its norms", "Without norms")
    assert [float(text) for text in table.rows[0][1:]] == pytest.approx([4, 16], rel=0.02)
    assert len(question("flatness").figures(curved(4.0, 16.0), [PAIR])) == 1
