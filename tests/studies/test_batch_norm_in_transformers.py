"""Batch statistics of text and images: the judge finds which vary more, and what batch norm costs."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, part, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies

SLUG = "batch-norm-in-transformers"
STUDY = studies.get(SLUG)
LRS = [0.003, 0.01]
MEASURES = ("mean", "variance", "relative_mean", "relative_variance")
JUDGED = STUDY.PRESETS["quick"]["judged"]


def planted(text=4.0, *, variance=None, early=None, losses=(2.8, 2.8), running=2.8):
    """Distances of the text over those of images; losses of batch norm and layer norm at both rates."""
    plant = Plant(settings(SLUG))
    steps, sizes = plant.settings["steps"], plant.settings["images"]
    points = [("batch", plant.settings["batch"]), *((arm, size) for arm in ("cnn", "patches") for size in sizes)]
    for seed in plant.seeds:
        for salt, (arm, batch) in enumerate(points):
            for measure in MEASURES:
                factor = variance if variance is not None and "variance" in measure else text
                value = 0.01 * (factor if arm == "batch" else 1.0) * math.exp(jitter(seed, 0.05, salt))
                for step in range(0, steps, 2):
                    first = early is not None and step < steps / 2
                    where = {"probe": "batch_distance", "site": "blocks.0", "step": step, "lr": JUDGED, "batch": batch}
                    plant.add(arm, seed, measure, early if first else value, **where)
        for lr in LRS:
            at = {"lr": lr, "batch": plant.settings["batch"]}
            for salt, (arm, loss) in enumerate(zip(("batch", "layer"), losses, strict=True)):
                loss += jitter(seed, 0.005, salt) + (0.1 if lr != JUDGED else 0)
                plant.add(arm, seed, "loss", 4.5, probe="chance", **at)
                plant.end(arm, seed, test_loss=loss, val_loss=loss, step=steps, **at)
            for name, loss in {"running": running, "own": 2.8}.items():
                plant.add("batch", seed, name, loss + jitter(seed, 0.005, len(name)), probe="evaluated", **at)
    return plant.evidence()


@pytest.mark.parametrize(("text", "outcome"), [(4.0, "holds"), (0.5, "opposite"), (1.0, "no effect that matters")])
def test_statistics_that_vary_more_are_found_against_every_image_net(text, outcome):
    verdict = STUDY.judge(planted(text))
    assert verdict.outcome.value == outcome
    words = words_by_name(verdict)
    assert {words[f"{name}, cnn 8"] for name in ("mean", "variance", "relative mean")} == {outcome}
    assert math.exp(verdict.effect.point) == pytest.approx(text, rel=0.05)


def test_means_and_variances_are_claims_of_their_own():
    words = words_by_name(STUDY.judge(planted(4.0, variance=0.5)))
    assert words["mean, patches 16"] == "holds"
    assert words["variance, patches 16"] == words["relative variance, patches 16"] == "opposite"


def test_the_first_half_of_training_does_not_count():
    verdict = STUDY.judge(planted(early=100.0))
    assert math.exp(verdict.effect.point) == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(
    ("losses", "outcome"), [((2.9, 2.8), "holds"), ((2.78, 2.8), "no effect that matters"), ((2.7, 2.8), "opposite")]
)
def test_what_batch_norm_costs_is_found(losses, outcome):
    words = words_by_name(STUDY.judge(planted(losses=losses)))
    assert {words[f"loss, {name}"] for name in ("own best rates", "rate 0.003", "rate 0.01")} == {outcome}


@pytest.mark.parametrize(("running", "outcome"), [(2.9, "holds"), (2.8, "no effect that matters")])
def test_a_gap_between_running_and_own_statistics_is_found(running, outcome):
    found = part(STUDY.judge(planted(running=running)), "evaluation")
    assert found.outcome.value == outcome
    assert found.effect.point == pytest.approx(running - 2.8, abs=0.01)


@pytest.mark.parametrize(
    ("arm", "batch", "site"), [("cnn", 16, "blocks.0.norm"), ("patches", 8, "blocks.0.attention_norm.inner")]
)
def test_image_nets_are_measured_at_their_first_batch_norm(arm, batch, site):
    records = [record for record in cell_records(SLUG, arm, {"batch": batch}) if record.probe == "batch_distance"]
    assert {record.site for record in records} == {site}
    assert {record.name for record in records} == set(MEASURES)
    assert {record.step for record in records} == {0, 2, 4}


def test_layer_norm_has_no_statistics_to_compare():
    records = cell_records(SLUG, "layer", {"lr": 0.01})
    assert not values(records, "relative_mean")
    assert not values(records, "running")
