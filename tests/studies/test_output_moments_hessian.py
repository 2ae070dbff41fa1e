"""Output moments: blocked directions, and whether they move the outputs, are told apart."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies

SLUG = "output-moments-hessian"
STUDY = studies.get(SLUG)


def planted(frozen=200.0, train=10.0, overlap=0.85):
    plant = Plant(settings(SLUG))
    for seed in plant.seeds:
        for arm in ("none", "batch"):
            for mode, value in (("frozen", frozen), ("train", train)):
                value *= math.exp(jitter(seed, 0.1, len(mode)))
                plant.add(arm, seed, f"top_eigenvalue@{mode}", 1.0, probe="curvature", step=0)  # not the last
                plant.add(arm, seed, f"top_eigenvalue@{mode}", value, probe="curvature", step=4)
                for name, share in (("overlap_mean", overlap), ("random_overlap_mean", 0.01)):
                    share += jitter(seed, 0.005)
                    plant.add(arm, seed, f"{name}@{mode}", share, probe="output_moments", step=4)
    return plant.evidence()


@pytest.mark.parametrize(
    ("frozen", "train", "outcome"),
    [
        (200, 10, "holds"),
        (20, 10, "no effect that matters"),
        (10, 200, "opposite"),
        (50, 10, "unclear"),  # at the margin
    ],
)
def test_the_judge_finds_what_was_planted(frozen, train, outcome):
    verdict = STUDY.judge(planted(frozen, train))
    assert verdict.outcome.value == outcome
    assert verdict.effect.point == pytest.approx(math.log(frozen / train), abs=0.2)


@pytest.mark.parametrize(("overlap", "outcome"), [(0.85, "holds"), (0.5, "no effect that matters"), (0.7, "unclear")])
def test_the_overlap_is_a_claim_of_its_own(overlap, outcome):
    verdict = STUDY.judge(planted(overlap=overlap))
    assert verdict.outcome.value == "holds"
    named = words_by_name(verdict)
    assert named["overlap, batch norm, frozen"] == named["overlap, no batch norm"] == outcome


@pytest.mark.trains
def test_sharp_directions_move_the_outputs_more_than_random_ones_and_with_norms_frozen_alone():
    records = cell_records(
        SLUG, "batch", steps=21, every=20, batch=64, network={"name": "mlp", "depth": 2, "width": 12}
    )
    (overlap,), (control,) = (values(records, f"{name}_mean@frozen") for name in ("overlap", "random_overlap"))
    assert 3 * control < overlap <= 1 + 1e-6  # over twenty seeds 11 to 31 times as much
    assert overlap > 2 * values(records, "overlap_mean@train")[0]  # over ten seeds 5.7 to 20 times as much
    tops = {mode: values(records, f"top_eigenvalue@{mode}", "curvature") for mode in ("frozen", "train")}
    assert len(tops["frozen"]) == len(tops["train"]) == 2
    assert tops["frozen"] != pytest.approx(tops["train"], rel=1e-3)  # which is larger is a matter of the seed


def test_without_batch_norm_both_modes_are_one():
    records = cell_records(SLUG, "none")
    train, frozen = (values(records, f"top_eigenvalue@{mode}", "curvature") for mode in ("train", "frozen"))
    assert train == frozen != []
