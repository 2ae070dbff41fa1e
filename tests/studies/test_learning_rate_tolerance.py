"""Usable learning rates: divergence counts, arms are told apart, no gain has no share."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, part
from kit.small_studies import cell_records, settings, values
from normscope import studies

SLUG = "learning-rate-tolerance"
STUDY = studies.get(SLUG)
RATES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]


def planted(none=0.1, batch=1.0, *, best=(0.90, 0.95), shared=0.91, diverged=False, small=0.0):
    plant = Plant(settings(SLUG, lrs=RATES, depths=[10], judged=10))
    plant.chance()
    for seed in plant.seeds:
        for arm, most, top in (("none", none, best[0]), ("batch", batch, best[1])):
            for rate in RATES:
                usable = rate <= most
                test = top if usable else 0.2
                test = shared if arm == "batch" and rate == none and none != batch else test
                test = 0.5 + (small if arm == "batch" else 0) if rate == RATES[0] else test
                train = 0.95 + jitter(seed, 0.02, len(arm) + round(1000 * rate)) if usable or diverged else 0.3
                loss = 1 / rate if usable else 1e3
                plant.end(
                    arm, seed, test + jitter(seed, 0.001, len(arm)), train=train, val_loss=loss, depth=10, lr=rate,
                    diverged=int(diverged and not usable),
                )  # fmt: skip
    return plant.evidence()


@pytest.mark.parametrize(
    ("none", "batch", "outcome"),
    [(0.1, 1.0, "holds"), (0.3, 1.0, "holds"), (0.3, 0.3, "no effect that matters"), (1.0, 0.1, "opposite")],
)
@pytest.mark.parametrize("diverged", [False, True])
def test_the_judge_finds_what_was_planted(none, batch, outcome, diverged):
    assert STUDY.judge(planted(none, batch, diverged=diverged)).outcome.value == outcome


def test_one_step_of_the_grid_does_not_lie_on_the_margin():
    verdict = STUDY.judge(planted(0.1, 0.3))
    assert verdict.effect.n == 10
    assert not 0.9 < math.exp(verdict.effect.point - verdict.margin) < 1.1


def test_a_rate_beyond_the_grid_makes_a_bound():
    verdict = STUDY.judge(planted(0.1, 3.0))
    assert verdict.outcome.value == "holds"
    assert verdict.amount.startswith("at least ")
    assert STUDY.judge(planted(3.0, 3.0)).outcome.value == "not measurable"  # the grid ends before either arm does


@pytest.mark.parametrize(("shared", "outcome"), [(0.90, "holds"), (0.95, "opposite")])
def test_a_gain_at_the_rate_that_suits_the_network_without_is_found(shared, outcome):
    assert part(STUDY.judge(planted(shared=shared)), "best without it, 10 layers").outcome.value == outcome


def test_without_a_gain_nothing_is_said_of_what_causes_it():
    same = part(STUDY.judge(planted(best=(0.95, 0.90))), "best without it, 10 layers")
    assert same.outcome.value == "not measurable"
    assert "a premise is not met" in same.why


@pytest.mark.parametrize(("small", "outcome"), [(0.0, "holds"), (0.1, "opposite"), (-0.1, "opposite")])
def test_small_rates_are_compared_on_both_sides(small, outcome):
    assert part(STUDY.judge(planted(small=small)), "smallest, 10 layers").outcome.value == outcome


@pytest.mark.trains
def test_a_deep_network_survives_a_large_rate_with_batch_norm_alone():
    more = {"network": {"name": "mlp", "width": 32}, "depths": [10], "judged": 10, "lrs": [1.0], "steps": 60,
            "train": None}  # fmt: skip
    ends = {arm: values(cell_records(SLUG, arm, **more), "test_accuracy")[-1:] for arm in ("none", "batch")}
    assert ends["batch"][0] > 0.5  # over ten seeds 0.80 to 0.93
    assert not ends["none"] or ends["none"][0] < 0.4  # lost, or at chance: 0.07 to 0.18
