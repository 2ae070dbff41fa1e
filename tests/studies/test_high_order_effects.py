"""Interactions between the layers' steps: the judge needs both scales."""

import pytest

from kit.planted_evidence import Plant, jitter
from kit.small_studies import settings
from normscope import studies

SLUG = "high-order-effects"
STUDY = studies.get(SLUG)


def orders(*ratios):
    """Ratios without over with batch norm at the two scales."""
    made = settings(SLUG)
    plant = Plant(made)
    for seed in plant.seeds:
        plant.add("chain", seed, "error", 1e-14, probe="chain", scale=1.0)
        for scale, factor in zip(made["scales"], ratios, strict=True):
            for arm, size in (("none", factor), ("batch", 1.0), ("last", 1.0)):
                for name in ("interaction_size", "remainder", "third_order"):
                    for c in made["decreases"]:
                        value = 0.1 * size * (1 + jitter(seed, 0.03, len(arm)))
                        plant.add(arm, seed, f"{name}@c={c:g}", value, probe="interaction", scale=scale)
    return plant.evidence()


@pytest.mark.parametrize(
    ("ratios", "outcome"),
    [((4, 4), "supported"), ((4, 1), "refuted"), ((0.25, 0.25), "refuted"), ((2, 4), "inconclusive")],
)
def test_interactions_must_be_fewer_at_both_scales(ratios, outcome):
    assert STUDY.judge(orders(*ratios)).outcome.value == outcome
