"""The noisy-batch-norm judge finds what was planted, and the noise arms are what they claim."""

import pytest

from kit.planted_evidence import Plant, jitter, words_by_name
from normscope import studies
from normscope.studies.claims.noisy_batchnorm import AREA

STUDY = studies.get("noisy-batchnorm")
SETTINGS = {
    "steps": 200,
    "lr": 0.1,
    "lrs": [0.1, 0.3],
    "controls": ["noisy-mean", "noise-before", "noise"],
    "every": 10,
}


def planted(noisy, *, shift=3.0, none=0.5, batch=0.7, seeds=10, wobble=0.01):
    """Mean training accuracies over the run, and how far the noise shifts against no norm."""
    plant = Plant(SETTINGS, seeds)
    for seed in plant.seeds:
        common = jitter(seed, 0.05)  # seeds differ; arms are paired
        for lr in SETTINGS["lrs"]:
            means = {"none": none, "batch": batch, "noisy": noisy}
            if lr == 0.1:
                means |= {"noisy-mean": noisy, "noise": 0.15, "noise-before": batch}
            for salt, (arm, mean) in enumerate(means.items()):
                for step in range(0, 200, 20):  # rising, the mean as planned
                    value = mean + common + jitter(seed, wobble if arm != "noise-before" else 0.001, salt)
                    plant.add(arm, seed, "accuracy", value * (0.5 + step / 180), step=step, lr=lr)
                plant.add(arm, seed, "val_loss", 1.0 if lr == 0.1 else 2.0, step=200, lr=lr)
                plant.add(arm, seed, "loss", 0.5, step=199, lr=lr)
                for name in ("mean_shift", "variance_shift"):
                    size = {"none": 0.1, "noisy": 0.1 * shift, "noisy-mean": 0.1 * shift}.get(arm, 0.01)
                    size *= 1 + jitter(seed, 0.02, salt)
                    plant.add(arm, seed, name, size, step=1, probe="channel_shift", site="blocks.0.norm", lr=lr)
    return plant.evidence()


@pytest.mark.parametrize(
    ("noisy", "shift", "outcome"),
    [
        (0.69, 3.0, "holds"),
        (0.80, 3.0, "holds"),  # more than all of it
        (0.69, 1.5, "not measurable"),  # kept, but the shift was not made
        (0.30, 1.5, "not measurable"),  # and so it is the other way
        (0.50, 3.0, "no effect that matters"),  # no gain is left
        (0.30, 3.0, "opposite"),
        (0.60, 3.0, "unclear"),  # half
    ],
)
def test_the_judge_finds_what_was_planted(noisy, shift, outcome):
    verdict = STUDY.judge(planted(noisy, shift=shift))
    assert verdict.outcome.value == outcome
    assert verdict.effect.point == pytest.approx((noisy - 0.5) / 0.2, abs=0.15)
    assert verdict.effect.low <= verdict.effect.point <= verdict.effect.high


def test_the_share_is_held_against_half_by_the_linear_contrast_of_each_seed():
    evidence = planted(0.65)
    none, batch, noisy = (AREA(evidence, arm=arm, lr=0.1) for arm in ("none", "batch", "noisy"))
    contrast = (noisy - none) - (batch - none) / 2
    values = next(iter(STUDY.contrasts(evidence))).read(evidence).values
    assert values - 0.5 == pytest.approx(contrast / (batch - none).mean())
    assert values.mean() == pytest.approx((noisy - none).mean() / (batch - none).mean())


@pytest.mark.parametrize("batch", [0.5, 0.4])
def test_without_a_gain_there_is_no_share_of_it(batch):
    verdict = STUDY.judge(planted(0.69, batch=batch))
    assert verdict.outcome.value == "not measurable"
    assert "Batch norm trains faster" in verdict.why
    assert [premise.met for premise in verdict.premises] == [False, True]


def test_the_shift_that_was_seen_is_said():
    assert "1.491 times larger" in STUDY.judge(planted(0.69, shift=1.5)).why


def test_parts_say_which_control_they_are():
    named = words_by_name(STUDY.judge(planted(0.69)))
    assert named["learning rate 0.1, only the mean noisy"] == "holds"
    assert named["own best learning rates"] == "holds"
    assert named["noise, no batch norm"] == "holds"  # planted: it never gets anywhere
    assert named["that noise before batch norm"] == "holds"


def test_one_seed_measures_nothing():
    assert STUDY.judge(planted(0.69, seeds=1)).outcome.value == "not measurable"


TINY = {
    "network": {"name": "mlp", "depth": 2, "width": 8}, "batch": 32, "steps": 12, "lr": 0.1, "lrs": [0.1, 0.3],
    "controls": ["noisy-unit", "noise-before", "noise-rescaled", "noisy-4"], "every": 4, "train": 200, "test": 50,
}  # fmt: skip


def test_it_runs_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(type(STUDY), "PRESETS", {"quick": TINY})
    verdict = STUDY.run(out=tmp_path, seeds=2, workers=1)
    (run,) = studies.load(tmp_path)
    assert run.verdict() == verdict
    figures = {figure.slug: figure for figure in run.figures()}
    assert {"accuracy", "loss", "shift", "percentiles", "accuracy-kinds", "accuracy-strengths"} <= set(figures)
    assert all(figure.caption and figure.alt for figure in figures.values())
    assert [len(table.rows) for table in run.tables()] == [3 * 2, 4]
    assert "--preset quick --seeds 2" in run.command()


def test_it_runs_on_images_with_the_convolutional_preset(tmp_path, monkeypatch):
    tiny = dict(STUDY.PRESETS["conv"], steps=6, train=100, test=50)
    monkeypatch.setattr(type(STUDY), "PRESETS", {"conv": tiny})
    assert STUDY.run(out=tmp_path, seeds=1, workers=1, preset="conv").outcome.value == "not measurable"
    (run,) = studies.load(tmp_path)
    assert run.figures()
    assert run.tables()
