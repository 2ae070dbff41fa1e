"""The question how far the learning rate can go: the rates are known by hand."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from kit.planted_comparison import ARMS, PAIR, compared, judged, question
from kit.planted_evidence import Plant, jitter
from normscope.comparing import Pair
from normscope.comparing.questions.rate_range import largest_rate
from normscope.records.answers import headline
from normscope.studies.evidence import Arrivals

STEPS = 40


def planted(ends, *, rates=(0.1, 1.0, 10.0), seeds=4, spread=0.01):
    """Losses of 2 at the first step and a constant from the second on, by arm and rate; None for a run that diverges.

    A function gives the end of each seed.
    """
    settings = {"steps": STEPS, "seeds": seeds, "rates": list(rates), "arms": ARMS, "readings": {}}
    plant = Plant(settings, seeds)
    for arm, of_rates in ends.items():
        for salt, (rate, end) in enumerate(zip(rates, of_rates, strict=True)):
            for seed in plant.seeds:
                here = end(seed) if callable(end) else end
                losses = [2.0] + [0.0 if here is None else here + jitter(seed, spread, salt)] * (STEPS - 1)
                if here is None:
                    losses = [2.0, 9.0, math.inf]
                for step, loss in enumerate(losses):
                    plant.add(arm, seed, "loss", loss, step=step, rate=rate)
                plant.add(arm, seed, "diverged", here is None, step=STEPS, rate=rate)
    return plant.evidence()


def test_an_arm_that_learns_at_ten_times_the_rate_holds():
    evidence = planted({"own": (1.0, 0.5, None), "none": (0.5, None, None)})
    verdict = judged("rates", evidence)
    assert verdict.outcome.value == "holds"
    assert headline(verdict).startswith("Yes: the largest learning rate at which the network learns is 10")
    assert "times larger" in verdict.finding
    assert "with its norms than without norms" in verdict.finding
    # The fall is 1.5 of 1.5 at the last rate that works and 0 at the next: a tenth lies at nine tenths of the way.
    assert verdict.effect.point == pytest.approx(math.log(10), abs=0.05)
    found = largest_rate(0.1).read(evidence, arm="none")
    np.testing.assert_allclose(found.steps, math.log(0.1) + 0.9 * math.log(10), atol=0.05)
    assert "half a step" in verdict.margin_reason
    assert verdict.margin == pytest.approx(math.log(10) / 2)


def test_turned_arms_give_the_opposite():
    assert judged("rates", planted({"own": (0.5, None, None), "none": (1.0, 0.5, None)})).outcome.value == "opposite"


def test_a_bound_is_said_to_be_one():
    evidence = planted({"own": (1.0, 0.5, 0.5), "none": (0.5, None, None)})
    verdict = judged("rates", evidence)
    assert verdict.outcome.value == "holds"
    assert "is at least 1" in verdict.finding
    assert "4 of 4 runs could go beyond the largest rate that was tried" in verdict.reason
    turned = judged("rates", planted({"none": (1.0, 0.5, 0.5), "own": (0.5, None, None)}))
    assert turned.outcome.value == "opposite"
    assert "is at least" in turned.finding
    assert "times smaller" in turned.finding


def test_a_bound_near_nothing_stays_unclear():
    """One arm works at the last rate and the other diverges there: their true limits may lie side by side."""
    verdict = judged("rates", planted({"own": (1.0, 0.5, 0.5), "none": (1.0, 0.5, None)}))
    assert verdict.outcome.value == "unclear"
    assert verdict.why == "4 runs could go beyond the largest rate that was tried, so the effect is only bounded"


def test_alike_arms_show_no_effect():
    """Both fall just below a tenth at the last rate, in different seeds by different amounts."""
    ends = (1.0, 0.5, lambda seed: 1.9 + 0.02 * (seed % 2))
    verdict = judged("rates", planted({"own": ends, "none": (1.0, 0.5, None)}))
    assert verdict.outcome.value == "no effect that matters"


def test_where_no_arm_fails_larger_rates_are_asked_for():
    verdict = judged("rates", planted({"own": (1.0, 0.5, 0.5), "none": (1.0, 0.6, 0.5)}))
    assert verdict.outcome.value == "not measurable"
    assert "10 times the set-up's own, in both arms: give larger ones by `--rates`" in verdict.why


def test_larger_rates_are_asked_for_though_a_third_arm_fails():
    arms = {**ARMS, "layer": "with layer norm"}
    evidence = planted({"own": (1.0, 0.5, 0.5), "none": (1.0, 0.6, 0.5), "layer": (0.5, 0.5, None)})
    evidence = replace(evidence, settings={**evidence.settings, "arms": arms})
    pairs = [PAIR, Pair("own", "layer", (arms["own"], arms["layer"]))]
    verdict = judged("rates", evidence, pairs)
    assert verdict.outcome.value == "not measurable"
    assert "in both arms: give larger ones by `--rates`" in verdict.why


def test_one_rate_tells_nothing():
    evidence = compared({})
    verdict = judged("rates", evidence)
    assert verdict.outcome.value == "not measurable"
    assert "give several by `--rates`, such as 0.1,1,10" in headline(verdict)
    assert not question("rates").figures(evidence, [PAIR])
    assert not question("rates").tables(evidence, [PAIR])


def test_an_arm_that_learns_nowhere_makes_it_not_measurable():
    verdict = judged("rates", planted({"own": (1.0, 0.5, None), "none": (1.95, 1.99, 2.5)}))
    assert verdict.outcome.value == "not measurable"
    assert "without norms learns at one of the learning rates" in verdict.why


@pytest.mark.parametrize(("end", "learns"), [(1.8, True), (1.9, False), (2.4, False), (None, False)])
def test_a_run_learns_if_its_loss_falls_by_a_tenth_of_the_largest_fall(end, learns):
    """The largest fall is 1.5, so the loss must come down from 2 to 1.85."""
    found = largest_rate(0.1).read(planted({"own": (0.5, 0.5, end), "none": (0.5, 0.5, 0.5)}), arm="own")
    assert isinstance(found, Arrivals)
    assert found.missed.all() if learns else not found.missed.any()


def test_a_run_that_diverges_at_its_end_does_not_learn():
    """Its loss had come down until then."""
    evidence = planted({"own": (0.5, 0.5, 0.5), "none": (0.5, 0.5, 0.5)})
    at = (pl.col("name") == "diverged") & (pl.col("arm") == "own") & (pl.col("rate") == 10.0)
    value = pl.when(at).then(1.0).otherwise(pl.col("value")).alias("value")
    found = largest_rate(0.1).read(replace(evidence, frame=evidence.frame.with_columns(value)), arm="own")
    assert not found.missed.any()


def test_a_run_without_records_is_no_run_that_learns():
    evidence = planted({"own": (0.5, 0.5, 0.5)})
    assert np.isnan(largest_rate(0.1).read(evidence, arm="none").steps).all()


def test_half_of_the_fall_is_a_standard_of_its_own():
    verdict = judged("rates", planted({"own": (1.0, 0.5, 1.5), "none": (1.0, 0.5, None)}))
    (higher,) = verdict.parts
    assert [each.value for each in higher.conditions if each.name == "standard"] == [
        "half of the largest fall of the loss"
    ]
    # By a tenth the own arm learns everywhere; by half its fall of 1 and then of 1/3 crosses three quarters of the way.
    assert higher.effect.point == pytest.approx((0.75 - 0.5) * math.log(10), abs=0.05)


def test_the_table_counts_the_runs_that_learn():
    evidence = planted({"own": (1.0, 0.5, lambda seed: 0.5 if seed else None), "none": (0.5, None, None)})
    (table,) = question("rates").tables(evidence, [PAIR])
    assert table.rows == (
        ("with its norms", "4 of 4", "4 of 4", "3 of 4"),
        ("without norms", "4 of 4", "0 of 4", "0 of 4"),
    )
    (figure,) = question("rates").figures(evidence, [PAIR])
    assert figure.slug == "end-loss-by-rate"
