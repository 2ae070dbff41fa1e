"""The edge of stability: both plateaus must be at two over the learning rate, and alike."""

import pytest

from kit.planted_evidence import Plant, jitter
from kit.small_studies import settings
from normscope import studies

SLUG = "beta-smoothness-is-edge-of-stability"
STUDY = studies.get(SLUG)


def planted(none=1.0, batch=1.0):
    made = settings(SLUG, steps=100)
    plant = Plant(made)
    for seed in plant.seeds:
        for arm, factor in (("none", none), ("batch", batch)):
            for lr in made["lrs"]:
                for step in (0, 80, 90, 100):
                    for name in ("sharpness", "beta_relative", "beta_absolute"):
                        value = 2 / lr * factor * (1 + jitter(seed, 0.01, step))
                        plant.add(arm, seed, name, value, probe="descent", step=step, lr=lr)
                for name, value in {"diverged": 0, "loss": 0.1}.items():
                    plant.add(arm, seed, name, value, probe="descent", step=100, lr=lr)
    return plant.evidence()


@pytest.mark.parametrize(
    ("none", "batch", "outcome"),
    [(1, 1, "supported"), (0.01, 1, "refuted"), (1, 3, "refuted"), (0.8, 0.8, "inconclusive"), (1.15, 0.9, "refuted")],
)
def test_the_judge_wants_both_plateaus_at_the_edge_and_alike(none, batch, outcome):
    assert STUDY.judge(planted(none, batch)).outcome.value == outcome
