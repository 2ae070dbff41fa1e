"""The question whether gains and shifts are used: drifts and distances are known by hand."""

import math

import polars as pl
import pytest

from kit.planted_comparison import ARMS, PAIR, compared, judged, question
from kit.planted_evidence import jitter
from normscope.comparing import Pair
from normscope.records.answers import headline, tried

FIXED = {**ARMS, "fixed-affine": "with gains and shifts that do not learn"}


def gains(moved=0.2, shifted=0.1, gap=0.5, *, batch=True):
    found = {
        ("affine_drift", "weight_mean"): {"bn1": [1.0, 1.1, 1.2], "bn2": [1.0, 1.1, 1.2]},
        ("affine_drift", "bias_mean"): {"bn1": [0.0, 0.1, 0.1], "bn2": [0.0, 0.1, 0.1]},
        ("affine_drift", "weight_drift"): {"bn1": [0.0, 0.0, moved / 2], "bn2": [0.0, 0.0, 3 * moved / 2]},
        ("affine_drift", "bias_drift"): {"bn1": [0.0, 0.0, shifted], "bn2": [0.0, 0.0, shifted]},
    }
    if batch:
        found |= {("affine_drift", f"{part}_identity_gap"): {"bn1": gap, "bn2": gap} for part in ("weight", "bias")}
    return found


def test_gains_that_move_hold_and_the_layer_is_named():
    verdict = judged("affine", compared({"own": gains()}, spread=0.001))
    assert verdict.outcome.value == "holds"
    assert verdict.effect.point == pytest.approx(0.2, abs=0.01)
    assert verdict.finding.startswith("gains, which begin at 1 on average, move by 0.")
    assert "most in the norm `bn2`: by 0.3" in verdict.reason or "most in the norm `bn2`: by 0.29" in verdict.reason
    shifts = tried(verdict)[1]
    assert shifts.effect.point == pytest.approx(0.1, abs=0.01)
    assert shifts.finding.startswith("shifts, which begin at 0 on average, move by 0.")


def test_gains_that_stay_do_not_matter_and_there_is_no_opposite():
    assert judged("affine", compared({"own": gains(moved=0.004)})).outcome.value == "no effect that matters"


def test_a_norm_that_undoes_itself_is_seen():
    parts = [
        [
            part.outcome.value
            for part in judged("affine", compared({"own": gains(gap=gap)})).parts
            if "undo" in part.claim
        ]
        for gap in (0.5, 0.01)
    ]
    assert parts == [["holds", "holds"], ["no effect that matters", "no effect that matters"]]


def test_other_norms_than_batch_norm_have_no_such_claim():
    verdict = judged("affine", compared({"own": gains(batch=False)}))
    assert not [part for part in verdict.parts if "undo" in part.claim]


def test_it_is_asked_of_one_arm_once_whatever_the_other_learns():
    evidence = compared({"own": gains()}, learn=["own"])
    other = Pair("own", "layer", ("with its norms", "with layer norm"))
    assert list(question("affine").contrasts(evidence, other)) == []
    verdict = judged("affine", evidence, [PAIR, other])
    assert verdict.outcome.value == "holds"
    assert len(verdict.premises) == 1


def test_an_arm_that_does_not_learn_tells_nothing():
    verdict = judged("affine", compared({"own": gains()}, learn=["none"]))
    assert verdict.outcome.value == "not measurable"
    assert "The network with its norms learns" in verdict.why


def with_fixed(cost):
    """Beside it the arm whose gains and shifts do not learn, which ends with a higher loss by a share."""
    evidence = compared({"own": gains()}, arms=FIXED)
    frame = evidence.frame
    seeds = pl.Series([1 + cost * (1 + jitter(seed, 0.01)) for seed in evidence.seeds])
    factor = pl.col("seed").replace_strict(dict(zip(evidence.seeds, seeds, strict=True)), return_dtype=pl.Float64)
    late = (pl.col("arm") == "fixed-affine") & (pl.col("name") == "loss") & (pl.col("step") > 0)
    value = pl.when(late).then(pl.col("value") * factor).otherwise(pl.col("value"))
    return type(evidence)(frame.with_columns(value.alias("value")), evidence.settings, evidence.seeds)


def test_what_fixing_them_costs_is_a_claim_of_its_own():
    verdict = judged("affine", with_fixed(0.25))
    (cost,) = [part for part in verdict.parts if "lower the training loss" in part.claim]
    assert cost.outcome.value == "holds"
    assert cost.effect.point == pytest.approx(0.2, abs=0.01)  # .25 of 1.25
    assert "% lower" in cost.finding
    assert "than with gains and shifts that do not learn" in cost.finding
    assert math.isfinite(cost.margin)


def test_fixing_them_without_cost_is_seen():
    (cost,) = [part for part in judged("affine", with_fixed(0.0)).parts if "lower the training loss" in part.claim]
    assert cost.outcome.value in ("no effect that matters", "not measurable")


def test_without_that_arm_the_table_says_how_to_ask():
    (table,) = question("affine").tables(compared({"own": gains()}), [PAIR])
    assert "`--arms own,none,fixed-affine`" in table.caption
    assert [row[0] for row in table.rows] == ["bn1", "bn2"]
    assert float(table.rows[1][1]) == pytest.approx(0.3, rel=0.03)
    (with_it,) = question("affine", FIXED).tables(with_fixed(0.1), [PAIR])
    assert "--arms" not in with_it.caption


def test_a_network_without_gains_says_so():
    evidence = compared({}, readings={"affine_drift": {"when": "often", "options": {}}})
    said = headline(judged("affine", evidence))
    assert said == "Not measurable: the network with its norms has no norm with gain and shift."
    assert not question("affine").figures(evidence, [PAIR])
    assert not question("affine").tables(evidence, [PAIR])


def test_a_probe_that_was_left_out_is_named():
    assert "affine_drift was left out to keep the budget" in headline(judged("affine", compared({})))
