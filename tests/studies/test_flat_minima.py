"""Flat minima: less sharp with batch norm at every learning rate, where the loss was reached."""

import pytest

from kit.planted_evidence import Plant, jitter
from kit.small_studies import settings
from normscope import studies

SLUG = "flat-minima"
STUDY = studies.get(SLUG)


def judged(ratio, reached=1.0):
    made = settings(SLUG)
    plant = Plant(made)
    for seed in plant.seeds:
        plant.add("law", seed, "error", 1e-12, probe="law", lr=made["lrs"][0], decay=0.0)
        for lr in made["lrs"]:
            for decay in made["decays"]:
                for arm, size in (("none", ratio), ("batch", 1.0)):
                    point = {"lr": lr, "decay": decay}
                    plant.add(arm, seed, "reached", reached, probe="minimum", **point)
                    plant.add(arm, seed, "test_accuracy", 0.9, probe="minimum", **point)
                    for name in ("layer_sharpness", "adaptive_sharpness", "top_eigenvalue", "trace"):
                        for mode in ("train", "frozen"):
                            value = size * (1 + jitter(seed, 0.02, len(arm)))
                            plant.add(arm, seed, f"{name}@{mode}", value, probe="curvature", **point)
    return STUDY.judge(plant.evidence())


@pytest.mark.parametrize(
    ("ratio", "outcome"), [(2, "supported"), (0.5, "refuted"), (1, "refuted"), (1.25, "inconclusive")]
)
def test_flatter_is_less_sharp_with_batch_norm(ratio, outcome):
    assert judged(ratio).outcome.value == outcome


def test_minima_whose_loss_was_not_reached_do_not_count():
    assert judged(2, reached=0).outcome.value == "inconclusive"
