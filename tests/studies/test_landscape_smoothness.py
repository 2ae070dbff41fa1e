"""The landscape judge finds what was planted, and says when it depends on the step."""

import math

import pytest

from kit.planted_evidence import Plant, jitter
from normscope import studies
from normscope.records import Outcome

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
                        value *= math.exp(jitter(seed, 0.05, step)) if step < 30 else 1000.0  # outside the window
                        for name in QUANTITIES:
                            plant.add(arm, seed, f"{name}@{matching}", value, **where)
                        plant.add(arm, seed, f"loss_min@{matching}", 0.1, **where)
                        plant.add(arm, seed, f"loss_max@{matching}", 0.1 + value, **where)
                    plant.add(arm, seed, "curvature", 2.0, **where)
    return plant.evidence()


@pytest.mark.parametrize(
    ("ratios", "outcome", "says"),
    [
        ((3, 3, 3), Outcome.SUPPORTED, "supported"),
        ((3, 1, 1), Outcome.REFUTED, "scale artefact"),
        ((3, 3, 1), Outcome.REFUTED, "depends on what is taken for an equal step"),
        ((1, 1, 1), Outcome.REFUTED, "refuted"),
        ((3, 3, 1.5), Outcome.INCONCLUSIVE, "depends"),  # at the margin
        ((0.3, 0.3, 0.3), Outcome.REFUTED, "refuted"),  # the other way round
    ],
)
def test_the_judge_finds_what_was_planted(ratios, outcome, says):
    verdict = STUDY.judge(planted(ratios))
    assert verdict.outcome is outcome
    assert says in verdict.reason
    matched = [part for part in verdict.parts if part.endpoint.startswith("Range") and "at the same" in part.endpoint]
    points = [math.exp(part.effect.point) for part in matched[:3]]
    assert points == pytest.approx(ratios, rel=0.1)


def test_lines_that_leave_the_numbers_are_left_out():
    evidence = planted((3, 3, 3))
    frame = evidence.frame
    bad = frame.filter((frame["arm"] == "none") & (frame["step"] == 0)).with_columns(value=math.inf)
    mixed = type(evidence)(frame.vstack(bad), evidence.settings, evidence.seeds)
    assert STUDY.judge(mixed).outcome is Outcome.SUPPORTED


def test_one_seed_decides_nothing():
    assert STUDY.judge(planted((3, 3, 3), seeds=1)).outcome is Outcome.INCONCLUSIVE


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
    assert {part.endpoint.partition(",")[0] for part in verdict.parts} >= {
        "Range of the loss along the gradient",
        "Effective beta",
        "Curvature along the gradient at distance 0",
    }
