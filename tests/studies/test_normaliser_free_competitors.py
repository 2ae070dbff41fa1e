"""Planted evidence for the judge of normalizer-free networks."""

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import settings
from normscope import studies


def free(share=1.0, accuracy=0.0):
    """``share`` of batch norm's gain that competitors recover, and how much more accurate they end."""
    slug = "normaliser-free-competitors"
    made = settings(slug, steps=20)
    plant = Plant(made)
    for seed in plant.seeds:
        for arm in ("none", "batch", "layer", "group", "fixup", "skipinit", "rezero", "nf"):
            for lr in made["plain_lrs" if arm == "none" else "lrs"]:
                mean = {"none": 0.2, "batch": 0.8}.get(arm, 0.2 + 0.6 * share) + jitter(seed, 0.005, len(arm))
                for step in range(20):
                    plant.add(arm, seed, "accuracy", mean, step=step, lr=lr)
                test = 0.9 + jitter(seed, 0.001, len(arm)) + (0 if arm in ("none", "batch") else accuracy)
                for name, value in {"test_accuracy": test, "val_loss": 0.5, "diverged": 0}.items():
                    plant.add(arm, seed, name, value, step=20, lr=lr)
                for block in range(made["network"]["depth"] + 1):
                    plant.add(arm, seed, "mean_square", 1 + jitter(seed, 0.01), probe="signal", step=block, lr=lr)
    return studies.get(slug).judge(plant.evidence())


@pytest.mark.parametrize(
    ("share", "accuracy", "outcome"),
    [(1, 0, "supported"), (0.3, 0, "refuted"), (-1, 0, "refuted"), (1, -0.05, "refuted"), (0.8, 0, "inconclusive")],
)
def test_a_competitor_must_recover_speed_and_accuracy(share, accuracy, outcome):
    assert free(share, accuracy).outcome.value == outcome


def test_a_stream_that_is_not_that_of_theory_is_found():
    verdict = free()
    assert outcomes(verdict, "Fixup over expected") == {"supported"}
    assert outcomes(verdict, "batch norm over expected") == {"refuted"}
