"""The question of generalisation: losses, shares and accuracies are known by hand."""

from dataclasses import replace

import polars as pl
import pytest

from kit.planted_comparison import ARMS, PAIR, compared, judged, question
from normscope.comparing import Pair
from normscope.records.answers import headline

POPULATION = {**ARMS, "population": "with batch norm of the population"}


def ends(train, other, *, domain=0.0, accuracy=0.8, noise=0.0):
    """The end of an arm: its losses, and the shares of the gap between them."""
    shares = {"dropout and other noise": noise, "other data": other}
    if domain:
        shares["domain shift"] = domain
    found = {("gap", "train"): train, ("gap", "eval"): train + sum(shares.values())}
    found |= {("gap", cause): share for cause, share in shares.items()}
    found[("evaluation", "loss")] = found[("gap", "eval")]
    found[("evaluation", "accuracy")] = accuracy
    return found


def test_a_smaller_rise_on_other_data_holds():
    verdict = judged("generalisation", compared({"own": ends(0.5, 0.1, domain=0.1), "none": ends(0.5, 0.6)}))
    assert verdict.outcome.value == "holds"
    assert verdict.effect.point == pytest.approx(0.4, abs=0.02)
    assert headline(verdict).startswith("Yes: on data that the network was not trained on, the loss rises by 0.")
    assert " less (" in verdict.finding
    # 2 % of the loss of 2 that training begins with.
    assert verdict.margin == pytest.approx(0.04)


def test_noise_of_training_is_no_part_of_it():
    """The gaps differ by .4, all of it dropout."""
    evidence = compared({"own": ends(0.9, 0.3, noise=-0.4), "none": ends(0.5, 0.3)})
    assert judged("generalisation", evidence).outcome.value == "no effect that matters"


def test_an_arm_with_the_larger_gap_and_the_better_end_is_told_of():
    evidence = compared({"own": ends(0.1, 0.5, accuracy=0.9), "none": ends(1.0, 0.1, accuracy=0.7)})
    verdict = judged("generalisation", evidence)
    assert verdict.outcome.value == "opposite"
    said = headline(verdict)
    assert "But holds with the loss itself on evaluation data (0." in said
    assert "holds with accuracy on evaluation data (" in said
    assert "points higher" in said


def test_without_accuracy_losses_decide():
    values = {arm: ends(0.5, rise) for arm, rise in (("own", 0.1), ("none", 0.6))}
    for of_arm in values.values():
        del of_arm["evaluation", "accuracy"]
    verdict = judged("generalisation", compared(values))
    assert verdict.outcome.value == "holds"
    assert len(verdict.parts) == 1
    assert len(question("generalisation").figures(compared(values), [PAIR])) == 1


def test_the_noise_of_the_batches_is_a_claim_of_its_own():
    evidence = compared({"own": ends(0.5, 0.1), "none": ends(0.5, 0.6), "population": ends(0.5, 0.4)}, arms=POPULATION)
    pairs = [PAIR, Pair("own", "population", (ARMS["own"], POPULATION["population"]))]
    verdict = judged("generalisation", evidence, pairs)
    noise = [
        part for part in verdict.parts if part.claim == "The noise of the batches lets the network generalise better."
    ]
    assert noise[0].outcome.value == "holds"
    assert noise[0].effect.point == pytest.approx(0.3, abs=0.02)
    assert all(part.claim != verdict.claim for part in noise)
    (table,) = question("generalisation", POPULATION).tables(evidence, pairs)
    assert "--arms" not in table.caption


def test_without_that_arm_the_table_says_how_to_ask():
    evidence = compared({"own": ends(0.5, 0.1), "none": ends(0.5, 0.6)})
    (table,) = question("generalisation").tables(evidence, [PAIR])
    assert "`--arms own,none,population`" in table.caption
    rows = {row[0]: [float(text) for text in row[1:]] for row in table.rows}
    assert rows["Rise of the loss through data that it was not trained on"] == pytest.approx([0.1, 0.6], rel=0.02)
    assert rows["Loss on evaluation data"] == pytest.approx([0.6, 1.1], rel=0.02)


def test_without_evaluation_data_it_asks_for_them():
    evidence = compared({arm: {("gap", "train"): 0.5, ("gap", "eval"): 0.5} for arm in ARMS})
    verdict = judged("generalisation", evidence)
    assert headline(verdict) == "Not measurable: there are no data to evaluate on: give the set-up an `eval_loader`."
    assert not question("generalisation").tables(evidence, [PAIR])
    assert not question("generalisation").figures(evidence, [PAIR])


def test_a_run_that_diverged_has_no_end():
    evidence = compared({"own": ends(0.5, 0.1), "none": ends(0.5, 0.6)})
    gone = (pl.col("probe") == "gap") & (pl.col("seed") == 0) & (pl.col("arm") == "none")
    late = (pl.col("probe") == "evaluation") & (pl.col("seed") == 0) & (pl.col("arm") == "none") & (pl.col("step") > 0)
    verdict = judged("generalisation", replace(evidence, frame=evidence.frame.filter(~gone & ~late)))
    assert verdict.effect.n == 4
    assert [part.effect.n for part in verdict.parts] == [4, 4]


def test_both_arms_must_learn():
    evidence = compared({"own": ends(0.5, 0.1), "none": ends(2.0, 0.6)}, learn=["own"])
    assert judged("generalisation", evidence).outcome.value == "not measurable"
