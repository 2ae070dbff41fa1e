"""Rules that judges share, each on numbers whose answer is known."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from kit.planted_evidence import Plant, jitter
from normscope import studies
from normscope.records import Estimate, Outcome, Verdict
from normscope.stats import decide, interval
from normscope.studies import Best
from normscope.studies.contrast import conjunction

S, R, U = Outcome.SUPPORTED, Outcome.REFUTED, Outcome.INCONCLUSIVE


def verdict(outcome, p, point=1.0):
    effect = Estimate(point, point - 0.1, point + 0.1, 0.95, 10, "t")
    return Verdict("s", "c", outcome, "e", effect, 0.0, "r", p_value=p)


@pytest.mark.parametrize(
    ("outcomes", "ps", "expected", "p"),
    [
        ((S, S, S), (0.01, 0.04, 0.02), S, 0.04),  # as weak as the weakest
        ((S, S, U), (0.01, 0.01, 0.5), U, 1.0),
        ((S, R, S), (0.01, 0.01, 0.01), R, 0.03),  # one of three was looked for
        ((S, R, S), (0.01, 0.03, 0.01), U, 0.09),
        ((R, R, R), (0.04, 0.001, 0.04), R, 0.003),
        ((U, U, U), (0.5, 0.6, 0.7), U, 1.0),
    ],
)
def test_conjunction(outcomes, ps, expected, p):
    found, p_value, _ = conjunction([verdict(o, q) for o, q in zip(outcomes, ps, strict=True)], 0.05)
    assert found is expected
    assert p_value == pytest.approx(p)


def test_conjunction_shows_the_part_that_decides():
    parts = [verdict(S, 0.01, 3.0), verdict(S, 0.01, 1.0), verdict(S, 0.01, 2.0)]
    assert conjunction(parts, 0.05)[2] is parts[1]
    parts[2] = replace(verdict(R, 0.001, -1.0))
    assert conjunction(parts, 0.05)[2] is parts[2]


def test_conjunction_of_three_equal_comparisons_keeps_its_level():
    """Under the worst null (two conditions clearly hold, the third lies at the margin) support is rare."""
    rng = np.random.default_rng(0)
    supported = refuted = 0
    for _ in range(400):
        parts = []
        for centre in (5.0, 5.0, 0.0):
            values = rng.normal(centre, 1.0, 10)
            outcome, p = decide(values, margin=0.0, method="t")
            parts.append(replace(verdict(outcome, p), effect=interval(values, method="t")))
        found = conjunction(parts, 0.05)[0]
        supported += found is S
        refuted += found is R
    assert supported <= 20  # 2.5 % expected: 10 of 400
    assert refuted <= 12  # 2.5 % / 3 expected


def test_best_rate_is_that_of_least_validation_loss_and_no_diverged_run():
    plant = Plant({}, seeds=3)
    for seed in plant.seeds:
        for lr, loss in ((0.1, 0.5), (0.3, 0.2), (1.0, 0.1)):
            plant.add("a", seed, "loss", 1.0, lr=lr)
            if not (lr == 1.0 and seed == 1):  # one seed diverged there
                plant.add("a", seed, "val_loss", loss, lr=lr)
            plant.add("b", seed, "loss", 1.0, lr=lr)
    assert Best("lr").of(plant.evidence(), arm="a") == 0.3
    assert Best("lr").of(plant.evidence(), arm="b") == 0.1  # nothing validated: the smallest


@pytest.mark.parametrize("target_step", [5, 6, 17])
def test_arrival_counts_steps_of_the_running_mean(target_step):
    plant = Plant({}, seeds=2)
    for seed in plant.seeds:
        plant.reach("a", seed, target_step + seed, 30)
    arrivals = plant.evidence().arrivals(0.8, horizon=30, arm="a")
    assert arrivals.steps.tolist() == [target_step, target_step + 1]
    assert not arrivals.missed.any()


def test_arrival_censors_what_never_arrives_and_what_diverged():
    plant = Plant({}, seeds=3)
    plant.reach("a", 0, 10, 30)
    plant.reach("a", 1, 99, 30)  # too late
    plant.reach("a", 2, 99, 7)  # stopped at step 7
    arrivals = plant.evidence().arrivals(0.8, horizon=30, arm="a")
    assert arrivals.steps.tolist() == [10, 30, 30]
    assert arrivals.missed.tolist() == [False, True, True]


def test_a_part_names_the_seeds_it_could_not_measure():
    study = studies.get("noisy-batchnorm")
    evidence = Plant({}, seeds=4)
    evidence.add("a", 0, "x", 1)
    made = evidence.evidence()
    part = study.part(made, [1.0, 1.1, math.nan, 1.2], endpoint="e", reason="Said.", margin=0.2)
    assert part.effect.n == 3
    assert "1 of 4 seeds" in part.reason
    assert not part.primary
    nothing = study.part(made, [math.nan] * 4, endpoint="e", reason="Said.")
    assert (nothing.outcome, nothing.p_value, nothing.effect.n) == (U, 1.0, 0)


def test_per_seed_is_in_the_order_of_seeds_whatever_the_order_of_rows():
    plant = Plant({}, seeds=4)
    for seed in (3, 0, 2):
        plant.add("a", seed, "x", 10 * seed + jitter(seed, 0))
    evidence = plant.evidence()
    values = evidence.per_seed(evidence.select(name="x"))
    assert values[[0, 2, 3]].tolist() == [0, 20, 30]
    assert math.isnan(values[1])
    assert evidence.per_seed(evidence.select(name="x"), pl.col("value").max())[3] == 30
