"""Lp norms: all of them must be as fast as batch norm."""

import pytest

from kit.planted_evidence import Plant, jitter
from kit.small_studies import settings
from normscope import studies

SLUG = "lp-normalisation"
STUDY = studies.get(SLUG)


def planted(**factors):
    """Steps to the target in units of batch norm's."""
    made = settings(SLUG, steps=400)
    plant = Plant(made)
    for seed in plant.seeds:
        for lr in made["lrs"]:
            for arm in ("none", "batch", "l1", "l2", "linf"):
                plant.reach(arm, seed, round(100 * factors.get(arm, 1) + jitter(seed, 2, len(arm))), 400, lr=lr)
                plant.end(arm, seed, 0.9 + jitter(seed, 0.001), step=401, train=1.0, lr=lr)
                plant.add(arm, seed, "spread", 1.2533, probe="lp", lr=lr)
    return plant.evidence()


@pytest.mark.parametrize(
    ("factors", "outcome"),
    [({}, "supported"), ({"linf": 2}, "refuted"), ({"l1": 0.5}, "refuted"), ({"l2": 1.2}, "inconclusive")],
)
def test_all_of_the_lp_norms_must_be_as_fast(factors, outcome):
    assert STUDY.judge(planted(**factors)).outcome.value == outcome
