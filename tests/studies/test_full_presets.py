"""The full presets run too: the same studies with networks of images, every option of which is another than quick's."""

import pytest

from normscope import studies

#: What makes a full preset take a second: two steps, a narrow network, few examples.
FEWER = {
    "train": 80, "test": 40, "steps": 2, "decayed_steps": 6, "law_steps": 2, "settle": 2, "draws": 10, "samples": 500,
    "every": 1, "batch": 16, "ghosts": [4, 8], "dropouts": [0.3], "sizes": [60],
}  # fmt: skip
VGG = {"name": "vgg-a", "width": 4}
ON_IMAGES = [
    study.CODE
    for study in studies.all()
    if study.PRESETS["full"].get("network", {}).get("name") == "vgg-a" and study.CARD not in (1, 11, 12, 13)
]


def shrunk(study, preset="full"):
    full = study.PRESETS[preset]
    settings = full | {name: value for name, value in FEWER.items() if name in full or name in ("train", "test")}
    settings |= {name: VGG for name in ("network", "decayed_network") if name in full}
    if "lrs" in full:
        settings["lrs"] = [rate for rate in full["lrs"] if rate in (0.1, 1.0)]
    if preset == "vgg":
        settings["lrs"] = [0.1]
    if study.CODE == "output-moments-hessian":
        settings["steps"] = 3
    return settings


@pytest.mark.long
@pytest.mark.parametrize("slug", ON_IMAGES)
def test_a_full_preset_runs_and_is_judged(slug, tmp_path, monkeypatch):
    study = studies.get(slug)
    monkeypatch.setattr(type(study), "PRESETS", {"full": shrunk(study)})
    verdict = study.run(out=tmp_path, seeds=1, workers=1, preset="full")
    (run,) = studies.load(tmp_path)
    evidence = run.evidence()
    assert study.judge(evidence) == verdict
    assert study.figures(evidence)
    assert all(len(row) == len(table.columns) for table in study.tables(evidence) for row in table.rows)


@pytest.mark.parametrize("slug", [study.CODE for study in studies.all() if "vgg" in study.PRESETS])
def test_the_presets_of_a_narrow_vgg_run_and_are_judged(slug, tmp_path, monkeypatch):
    study = studies.get(slug)
    monkeypatch.setattr(type(study), "PRESETS", {"vgg": shrunk(study, "vgg")})
    verdict = study.run(out=tmp_path, seeds=1, workers=1, preset="vgg")
    assert study.judge(studies.load(tmp_path)[0].evidence()) == verdict
