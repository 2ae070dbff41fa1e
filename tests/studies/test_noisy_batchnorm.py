"""The noisy-batch-norm judge finds what was planted, and the noise arms are what they claim."""

import pytest

from kit.planted_evidence import Plant, jitter
from normscope import studies
from normscope.records import Outcome

STUDY = studies.get("noisy-batchnorm")
SETTINGS = {"steps": 200, "lr": 0.1, "lrs": [0.1, 0.3], "controls": ["noisy-mean", "noise"], "every": 10}


def planted(noisy, *, shift=3.0, none=100, batch=50, seeds=10, wobble=3.0):
    plant = Plant(SETTINGS, seeds)
    for seed in plant.seeds:
        common = jitter(seed, 5.0)  # seeds differ; arms are paired
        for lr in SETTINGS["lrs"]:
            times = {"none": none, "batch": batch, "noisy": noisy}
            if lr == 0.1:
                times |= {"noisy-mean": 55, "noise": 999}
            for salt, (arm, time) in enumerate(times.items()):
                at = time + common + jitter(seed, wobble, salt)
                plant.reach(arm, seed, round(at), SETTINGS["steps"], lr=lr)
                plant.add(arm, seed, "val_loss", 1.0 if lr == 0.1 else 2.0, step=200, lr=lr)
                plant.add(arm, seed, "loss", 0.5, step=199, lr=lr)
                for name in ("mean_shift", "variance_shift"):
                    size = {"none": 0.1, "noisy": 0.1 * shift}.get(arm, 0.01) * (1 + jitter(seed, 0.02, salt))
                    plant.add(arm, seed, name, size, step=1, probe="channel_shift", site="blocks.0.norm", lr=lr)
    return plant.evidence()


@pytest.mark.parametrize(
    ("noisy", "shift", "outcome"),
    [
        (53, 3.0, Outcome.SUPPORTED),
        (53, 1.5, Outcome.INCONCLUSIVE),  # kept, but the shift was not made
        (97, 3.0, Outcome.REFUTED),
        (97, 1.5, Outcome.REFUTED),  # lost to less noise than was meant
        (140, 3.0, Outcome.REFUTED),
        (999, 3.0, Outcome.REFUTED),  # never gets there
        (75, 3.0, Outcome.INCONCLUSIVE),  # half is neither
    ],
)
def test_the_judge_finds_what_was_planted(noisy, shift, outcome):
    verdict = STUDY.judge(planted(noisy, shift=shift))
    assert verdict.outcome is outcome
    assert verdict.primary
    assert not any(part.primary for part in verdict.parts)
    if noisy < 200:
        assert verdict.effect.point == pytest.approx((100 - noisy) / 50, abs=0.12)
    assert verdict.effect.low <= verdict.effect.point <= verdict.effect.high


@pytest.mark.parametrize("batch", [100, 150])
def test_without_a_gain_there_is_no_share_of_it(batch):
    verdict = STUDY.judge(planted(53, batch=batch))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "gains nothing" in verdict.reason


def test_censored_runs_are_counted_in_the_reason():
    assert "noisy batch norm 200 (never reached in 10 of 10 runs)" in STUDY.judge(planted(999)).reason


def test_parts_say_which_control_they_are():
    parts = {part.endpoint: part for part in STUDY.judge(planted(53)).parts}
    control = next(part for end, part in parts.items() if "only the mean noisy" in end)
    assert control.outcome is Outcome.SUPPORTED
    alone = next(part for end, part in parts.items() if "noise, no batch norm" in end)
    assert alone.outcome is Outcome.SUPPORTED  # planted: it never gets anywhere
    assert any("own best" in end for end in parts)


def test_one_seed_decides_nothing():
    verdict = STUDY.judge(planted(53, seeds=1))
    assert verdict.outcome is Outcome.INCONCLUSIVE


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
    assert STUDY.run(out=tmp_path, seeds=1, workers=1, preset="conv").outcome is Outcome.INCONCLUSIVE
    (run,) = studies.load(tmp_path)
    assert run.figures()
    assert run.tables()
