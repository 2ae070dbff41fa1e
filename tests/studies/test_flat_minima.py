"""Flat minima: less sharp with batch norm by a measure that is named, where the loss was reached."""

import pytest

from kit.planted_evidence import Plant, jitter, words_by_name
from kit.small_studies import settings
from normscope import studies
from normscope.records import standing

SLUG = "flat-minima"
STUDY = studies.get(SLUG)


def judged(ratio, *, raw=None, reached=1.0, rising=True):
    """Sharpness without over with batch norm, of the raw measures ``raw``; error rises with sharpness or falls."""
    made = settings(SLUG, lrs=[0.03, 0.1, 0.3])
    plant = Plant(made)
    for seed in plant.seeds:
        plant.add("law", seed, "error", 1e-12, probe="law", lr=made["lrs"][0], decay=0.0)
        for turn, lr in enumerate(made["lrs"]):
            for decay in made["decays"]:
                for arm, size in (("none", ratio), ("batch", 1.0)):
                    point = {"lr": lr, "decay": decay}
                    error = (0.1 + 0.02 * turn) if rising else (0.2 - 0.02 * turn)
                    plant.add(arm, seed, "reached", reached, probe="minimum", **point)
                    accuracy = 1 - error - jitter(seed, 0.008, turn + 10 * (decay > 0) + 20 * (arm == "none"))
                    plant.add(arm, seed, "test_accuracy", accuracy, probe="minimum", **point)
                    for name in ("layer_sharpness", "adaptive_sharpness", "top_eigenvalue", "trace"):
                        for mode in ("train", "frozen"):
                            here = raw if raw and arm == "none" and name in ("top_eigenvalue", "trace") else size
                            value = here * (1 + turn) * (1 + jitter(seed, 0.02, len(arm)))
                            plant.add(arm, seed, f"{name}@{mode}", value, probe="curvature", **point)
    return STUDY.judge(plant.evidence())


@pytest.mark.parametrize(
    ("ratio", "outcome"), [(2, "holds"), (0.5, "opposite"), (1, "no effect that matters"), (1.25, "unclear")]
)
def test_flatter_is_less_sharp_with_batch_norm(ratio, outcome):
    assert judged(ratio).outcome.value == outcome


def test_a_raw_measure_that_says_otherwise_makes_it_depend_on_the_measure():
    verdict = judged(2, raw=0.5)
    assert standing(verdict) == "depends on the measure"
    assert "layer-normalized sharpness" in verdict.finding


@pytest.mark.parametrize(("rising", "outcome"), [(True, "holds"), (False, "opposite")])
def test_that_sharper_minima_generalize_worse_is_another_claim(rising, outcome):
    named = words_by_name(judged(1, rising=rising))
    assert named["correlation, no batch norm"] == named["correlation, batch norm"] == outcome
    assert named["rescaling"] == "exact"


def test_minima_whose_loss_was_not_reached_do_not_count():
    assert judged(2, reached=0).outcome.value == "not measurable"
