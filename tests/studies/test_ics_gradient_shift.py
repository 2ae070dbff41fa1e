"""The covariate-shift judge finds what was planted under each matching."""

import dataclasses

import pytest

from kit.planted_evidence import Plant, jitter, words_by_name
from normscope import studies
from normscope.records import standing

STUDY = studies.get("ics-gradient-shift")
SETTINGS = {"steps": 100, "lr": 0.1, "lrs": [0.01, 0.1, 1.0], "every": 10, "linear": None, "sites": None}
UPDATES = {"none": {0.01: 1e-3, 0.1: 1e-2, 1.0: 1e-1}, "batch": {0.01: 1e-4, 0.1: 1e-3, 1.0: 1e-2}}


def planted(cosines, best, seeds=10):
    """``cosines[arm][lr]``, and each arm's best learning rate."""
    plant = Plant(SETTINGS, seeds)
    for seed in plant.seeds:
        for arm, by_rate in cosines.items():
            for lr, cosine in by_rate.items():
                plant.reach(arm, seed, 60, 100, lr=lr)
                plant.add(arm, seed, "loss", 1.0, lr=lr)
                plant.add(arm, seed, "val_loss", 0.1 if best[arm] == lr else 0.5, step=100, lr=lr)
                plant.add(arm, seed, "relative_update", UPDATES[arm][lr], probe="update", lr=lr)
                for step in (0, 10, 20, 30, 90):
                    for site in ("blocks.0.linear", "blocks.1.linear", "head"):
                        value = (
                            cosine + jitter(seed, 0.01, step + 1000 * len(arm)) if step < 30 else -1.0
                        )  # outside the window
                        value = 1.0 if site == "blocks.0.linear" else value  # nothing precedes it
                        where = {"probe": "covariate_shift", "site": site, "step": step, "lr": lr}
                        plant.add(arm, seed, "cosine", value, **where)
                        plant.add(arm, seed, "relative", 1 - value, **where)
                        plant.add(arm, seed, "l2", 1 - value, **where)
                        plant.add(arm, seed, "gradient_norm", 1.0, **where)
    return plant.evidence()


SAME = {0.01: 0.9, 0.1: 0.5, 1.0: 0.2}


BOTH = {"none": 0.1, "batch": 0.1}


@pytest.mark.parametrize(
    ("batch", "best", "outcome", "stands"),
    [
        ({0.01: 0.9, 0.1: 0.8, 1.0: 0.7}, BOTH, "holds", "holds"),
        ({0.01: 0.9, 0.1: 0.8, 1.0: 0.1}, {"none": 0.1, "batch": 1.0}, "holds", "depends on the matching"),
        ({0.01: 0.8, 0.1: 0.3, 1.0: 0.1}, BOTH, "opposite", "opposite"),
        ({0.01: 0.9, 0.1: 0.5, 1.0: 0.5}, BOTH, "no effect that matters", "no effect that matters"),
        ({0.01: 0.9, 0.1: 0.55, 1.0: 0.55}, BOTH, "unclear", "unclear"),  # at the margin
    ],
)
def test_the_judge_finds_what_was_planted(batch, best, outcome, stands):
    verdict = STUDY.judge(planted({"none": SAME, "batch": batch}, best))
    assert verdict.outcome.value == outcome
    assert standing(verdict) == stands
    assert verdict.name == "same learning rate"
    assert verdict.effect.point == pytest.approx(batch[0.1] - 0.5, abs=0.02)


def test_equal_updates_are_compared_at_equal_updates():
    """With equal cosines per learning rate, but updates ten times smaller, batch norm shifts more at equal updates."""
    verdict = STUDY.judge(planted({"none": SAME, "batch": SAME}, BOTH))
    matched = next(part for part in verdict.parts if part.name == "same relative update")
    # The update of none at 0.1 is that of batch at 1.0, where its cosine is 0.2.
    assert matched.effect.point == pytest.approx(0.2 - 0.5, abs=0.02)
    assert matched.outcome.value == "opposite"
    assert standing(verdict) == "depends on the matching"


def test_an_update_out_of_reach_is_not_matched():
    evidence = planted({"none": {0.1: 0.5}, "batch": {0.1: 0.8}}, BOTH)
    only = dataclasses.replace(evidence, settings={**evidence.settings, "lrs": [0.1]})
    verdict = STUDY.judge(only)
    assert words_by_name(verdict)["same relative update"] == "not measurable"
    assert verdict.outcome.value == "holds"  # which needs no other rate


def test_lengths_are_claims_of_their_own():
    named = words_by_name(STUDY.judge(planted({"none": SAME, "batch": {0.01: 0.9, 0.1: 0.8, 1.0: 0.7}}, BOTH)))
    assert named["relative length"] == named["raw length"] == "holds"


def test_one_seed_measures_nothing():
    verdict = STUDY.judge(planted({"none": SAME, "batch": SAME}, BOTH, seeds=1))
    assert verdict.outcome.value == "not measurable"


def test_it_runs_as_a_whole_with_the_deep_linear_network(tmp_path, monkeypatch):
    tiny = {
        "network": {"name": "mlp", "depth": 2, "width": 8}, "batch": 32, "steps": 14, "lr": 0.1,
        "lrs": [0.03, 0.1, 0.3], "every": 2, "sites": None, "train": 200, "test": 50,
        "linear": {"steps": 3, "lrs": [1e-6], "every": 1, "sites": ["blocks.8.linear", "blocks.16.linear"]},
    }  # fmt: skip
    monkeypatch.setattr(type(STUDY), "PRESETS", {"quick": tiny})
    verdict = STUDY.run(out=tmp_path, seeds=2, workers=1)
    (run,) = studies.load(tmp_path)
    assert run.verdict() == verdict
    assert "deep linear, 1e-06" in words_by_name(verdict)
    slugs = [figure.slug for figure in run.figures()]
    assert {"shift", "cosine-by-rate", "gradient-by-depth", "loss", "cosine-linear", "loss-linear"} == set(slugs)
    assert len(run.tables()[0].rows) == 6
    frame = run.store.frame(probe="covariate_shift", name="cosine", site="blocks.0.linear")
    assert frame["value"].to_list() == pytest.approx([1.0] * frame.height)  # nothing precedes the first layer
    late = run.store.frame(probe="covariate_shift")
    assert late.filter(~late["arm"].str.starts_with("dln"))["step"].max() < 0.3 * 14 + 1
