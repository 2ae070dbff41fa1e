"""Usable learning rates: divergence counts, arms are told apart, no gain has no share."""

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies

SLUG = "learning-rate-tolerance"
STUDY = studies.get(SLUG)
RATES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]


def planted(none=0.1, batch=1.0, *, best=(0.90, 0.95), shared=0.91, diverged=False, small=0.0):
    plant = Plant(settings(SLUG, lrs=RATES, depths=[10], judged=10))
    for seed in plant.seeds:
        for arm, most, top in (("none", none, best[0]), ("batch", batch, best[1])):
            for rate in RATES:
                usable = rate <= most
                test = top if usable else 0.2
                test = shared if arm == "batch" and rate == none and none != batch else test
                test = 0.5 + (small if arm == "batch" else 0) if rate == RATES[0] else test
                train = 0.99 if usable or diverged else 0.3
                loss = 1 / rate if usable else 1e3
                plant.end(
                    arm, seed, test + jitter(seed, 0.001, len(arm)), train=train, val_loss=loss, depth=10, lr=rate,
                    diverged=int(diverged and not usable),
                )  # fmt: skip
    return plant.evidence()


@pytest.mark.parametrize(
    ("none", "batch", "outcome"),
    [(0.1, 1.0, "supported"), (0.3, 0.3, "refuted"), (1.0, 0.1, "refuted")],
)
@pytest.mark.parametrize("diverged", [False, True])
def test_the_judge_finds_what_was_planted(none, batch, outcome, diverged):
    assert STUDY.judge(planted(none, batch, diverged=diverged)).outcome.value == outcome


@pytest.mark.parametrize(("shared", "outcome"), [(0.90, "supported"), (0.95, "refuted")])
def test_what_is_left_at_the_shared_rate_decides_what_causes_the_gain(shared, outcome):
    assert outcomes(STUDY.judge(planted(shared=shared)), "share of the gain left") == {outcome}


def test_of_a_loss_there_is_no_share():
    assert outcomes(STUDY.judge(planted(best=(0.95, 0.90))), "share of the gain left") == {"inconclusive"}


@pytest.mark.parametrize(("small", "outcome"), [(0.0, "supported"), (0.1, "refuted"), (-0.1, "refuted")])
def test_small_rates_are_compared_on_both_sides(small, outcome):
    assert outcomes(STUDY.judge(planted(small=small)), "learning rate 0.01") == {outcome}


@pytest.mark.trains
def test_a_deep_network_survives_a_large_rate_with_batch_norm_alone():
    more = {"network": {"name": "mlp", "width": 32}, "depths": [10], "judged": 10, "lrs": [1.0], "steps": 60,
            "train": None}  # fmt: skip
    ends = {arm: values(cell_records(SLUG, arm, **more), "test_accuracy")[-1:] for arm in ("none", "batch")}
    assert ends["batch"][0] > 0.5  # over ten seeds 0.80 to 0.93
    assert not ends["none"] or ends["none"][0] < 0.4  # lost, or at chance: 0.07 to 0.18
