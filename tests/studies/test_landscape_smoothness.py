"""The landscape judge finds what was planted, and says when it depends on the step."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, words_by_name
from normscope import studies
from normscope.records import answer, standing

STUDY = studies.get("landscape-smoothness")
SETTINGS = {"depth": 8, "depths": [3, 8], "lr": 0.1, "steps": 100, "every": 10, "network": {"name": "mlp"}}
MATCHINGS = ("same-step", "relative-step", "predicted-decrease")
QUANTITIES = ("loss_range", "gradient_difference", "gradient_difference_relative", "effective_beta")


def planted(ratios, seeds=10):
    """``ratios[matching]``: without over with batch norm, of every quantity."""
    plant = Plant(SETTINGS, seeds)
    for seed in plant.seeds:
        for depth in SETTINGS["depths"]:
            for arm in ("none", "batch", "noisy"):
                if arm == "noisy" and depth != 8:
                    continue
                plant.add(arm, seed, "loss", 0.1, step=99, depth=depth)
                for step in (0, 10, 20, 30, 60):
                    where = {"probe": "landscape", "step": step, "depth": depth}
                    for matching, ratio in zip(MATCHINGS, ratios, strict=True):
                        value = ratio if arm == "none" else 1.0
                        value *= (
                            math.exp(jitter(seed, 0.05, step + 1000 * (arm == "none"))) if step < 30 else 1000.0
                        )  # outside the window
                        for name in QUANTITIES:
                            plant.add(arm, seed, f"{name}@{matching}", value, **where)
                        plant.add(arm, seed, f"loss_min@{matching}", 0.1, **where)
                        plant.add(arm, seed, f"loss_max@{matching}", 0.1 + value, **where)
                    plant.add(arm, seed, "curvature", 2.0, **where)
    return plant.evidence()


@pytest.mark.parametrize(
    ("ratios", "outcome", "stands"),
    [
        ((3, 3, 3), "holds", "holds"),
        ((3, 1, 1), "holds", "depends on the matching"),
        ((1, 3, 3), "no effect that matters", "depends on the matching"),
        ((1, 1, 1), "no effect that matters", "no effect that matters"),
        ((1.5, 3, 3), "unclear", "unclear"),  # at the margin
        ((0.3, 0.3, 0.3), "opposite", "opposite"),
    ],
)
def test_the_judge_finds_what_was_planted(ratios, outcome, stands):
    verdict = STUDY.judge(planted(ratios))
    assert verdict.outcome.value == outcome
    assert standing(verdict) == stands
    named = {each.name: each for each in (verdict, *verdict.parts)}
    points = [math.exp(named[f"loss_range@{matching}"].effect.point) for matching in MATCHINGS]
    assert points == pytest.approx(ratios, rel=0.1)


def test_the_answer_says_how_many_times_narrower():
    assert answer(STUDY.judge(planted((3, 1, 1)))).startswith("Yes: the range of the loss along the gradient is ")
    assert "times wider" in STUDY.judge(planted((0.3, 0.3, 0.3))).finding


def test_noisy_batch_norm_and_the_curvature_are_claims_of_their_own():
    named = words_by_name(STUDY.judge(planted((3, 3, 3))))
    assert named["loss_range@same-step, noisy"] == "holds"
    assert named["curvature"] == "not measurable"  # planted: the same number in every seed


def test_lines_that_leave_the_numbers_are_left_out():
    evidence = planted((3, 3, 3))
    frame = evidence.frame
    bad = frame.filter((frame["arm"] == "none") & (frame["step"] == 0)).with_columns(value=math.inf)
    mixed = type(evidence)(frame.vstack(bad), evidence.settings, evidence.seeds)
    assert STUDY.judge(mixed).outcome.value == "holds"


def test_one_seed_measures_nothing():
    assert STUDY.judge(planted((3, 3, 3), seeds=1)).outcome.value == "not measurable"


def test_it_runs_as_a_whole(tmp_path, monkeypatch):
    tiny = {
        "network": {"name": "mlp", "width": 8}, "depth": 2, "depths": [1, 2], "batch": 32, "lr": 0.1, "steps": 12,
        "every": 2, "points": 2, "dense": [0.1], "train": 200, "test": 50,
    }  # fmt: skip
    monkeypatch.setattr(type(STUDY), "PRESETS", {"quick": tiny})
    verdict = STUDY.run(out=tmp_path, seeds=2, workers=1)
    (run,) = studies.load(tmp_path)
    assert run.verdict() == verdict
    assert {f.slug for f in run.figures()} == {"loss-band", "gradient-band", "beta", "loss", "range-by-depth"}
    assert len(run.tables()[0].rows) == 2 * (4 * 3 + 1)
    named = words_by_name(verdict)
    assert {"loss_range@same-step", "loss_range@same-step, 1 layers", "effective_beta@relative-step"} < set(named)
    assert len(named) == len(verdict.parts) + 1
