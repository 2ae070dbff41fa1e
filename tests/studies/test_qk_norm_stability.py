"""A norm on queries and keys: the judge finds larger usable rates and logits that grow."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, part, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies

SLUG = "qk-norm-stability"
STUDY = studies.get(SLUG)
LRS = [0.01, 0.03, 0.1, 0.2, 0.4]
FREQUENT, CHANCE = 3.2, 4.5


def planted(none=0.1, qk=0.2, *, logits=(1000.0, 10.0), weights=(0.9, 0.3), cost=0.0, lost=()):
    """Runs that end at 2.7 up to a rate, and at the loss of the frequencies beyond it."""
    plant = Plant(settings(SLUG, lrs=LRS, high=0.1, steps=40))
    for seed in plant.seeds:
        arms = ("none", none, logits[0], weights[0]), ("qk", qk, logits[1], weights[1])
        for salt, (arm, usable, logit, weight) in enumerate(arms, 1):
            for index, lr in enumerate(LRS, 10 * salt):
                diverged = (arm, lr) in lost
                loss = (2.7 if lr <= usable else FREQUENT) + (cost if arm == "qk" else 0) + jitter(seed, 0.01, index)
                plant.add(arm, seed, "loss", CHANCE, probe="chance", lr=lr)
                plant.add(arm, seed, "frequency_loss", FREQUENT, probe="text", lr=lr)
                for step in (0, 36, 39):
                    where = {"probe": "attention", "site": "blocks.0.attention", "step": step, "lr": lr}
                    plant.add(arm, seed, "largest_logit", logit * math.exp(jitter(seed, 0.1, salt)), **where)
                    plant.add(arm, seed, "largest_weight", weight + jitter(seed, 0.01, salt), **where)
                plant.add(arm, seed, "loss", loss, step=39, lr=lr)
                plant.add(arm, seed, "diverged", int(diverged), step=40, lr=lr)
                if not diverged:
                    plant.add(arm, seed, "test_loss", loss, step=40, lr=lr)
                    plant.add(arm, seed, "val_loss", loss, step=40, lr=lr)
    return plant.evidence()


@pytest.mark.parametrize(
    ("none", "qk", "outcome"),
    [(0.1, 0.2, "holds"), (0.2, 0.1, "opposite"), (0.1, 0.1, "no effect that matters"), (0.03, 0.2, "holds")],
)
def test_the_larger_usable_rate_is_found(none, qk, outcome):
    verdict = STUDY.judge(planted(none, qk))
    assert verdict.outcome.value == outcome
    assert verdict.effect.n == 10


def test_a_rate_beyond_the_grid_makes_a_bound():
    verdict = STUDY.judge(planted(0.1, 0.4))
    assert verdict.outcome.value == "holds"
    assert verdict.amount.startswith("at least ")


def test_a_run_that_diverged_has_an_unusable_rate_and_the_loss_of_chance():
    verdict = STUDY.judge(planted(0.2, 0.2, lost={("none", 0.2), ("none", 0.1), ("none", 0.4)}))
    assert verdict.outcome.value == "holds"
    assert part(verdict, "loss, 0.1").effect.point == pytest.approx(CHANCE - 2.7, abs=0.02)


@pytest.mark.parametrize(("logits", "outcome"), [((1000.0, 10.0), "holds"), ((10.0, 10.0), "no effect that matters")])
def test_logits_that_grow_are_found(logits, outcome):
    words = words_by_name(STUDY.judge(planted(logits=logits)))
    assert {words[f"logits, {lr:g}"] for lr in LRS} == {outcome}


@pytest.mark.parametrize(
    ("weights", "outcome"), [((0.9, 0.3), "holds"), ((0.3, 0.3), "no effect that matters"), ((0.3, 0.9), "opposite")]
)
def test_attention_to_single_positions_is_found(weights, outcome):
    assert words_by_name(STUDY.judge(planted(weights=weights)))["single positions, 0.2"] == outcome


def test_sensitivity_is_the_mean_loss_over_rates_less_the_best():
    # Without, two of five rates are unusable, with the norm one.
    found = part(STUDY.judge(planted(0.1, 0.2)), "sensitivity")
    assert found.effect.point == pytest.approx((FREQUENT - 2.7) / 5, abs=0.01)
    assert found.outcome.value == "holds"


@pytest.mark.parametrize(("cost", "outcome"), [(0.0, "holds"), (0.1, "opposite"), (-0.1, "holds")])
def test_a_cost_at_own_best_rates_is_found(cost, outcome):
    assert words_by_name(STUDY.judge(planted(cost=cost)))["own best rates"] == outcome


def test_gains_bound_logits_at_the_start():
    """Queries and keys of length root d at the start, so that a logit is root d at most."""
    bound = math.sqrt(8 / 2)
    logits = values(cell_records(SLUG, "qk", {"lr": 0.01}), "largest_logit")
    assert 0 < max(logits[:2]) <= bound + 1e-4  # of two blocks, at the first step
