"""Every study describes itself, and is found by its slug."""

import json
import re
from pathlib import Path

import pytest

from normscope import studies
from normscope._errors import UsageError
from normscope.studies.lab.data import load

ALL = studies.all()
SLUGS = [study.CODE for study in ALL]


def test_the_first_four_are_there():
    assert {"bn-backward-three-terms", "noisy-batchnorm", "ics-gradient-shift", "landscape-smoothness"} <= set(SLUGS)
    assert [study.CARD for study in ALL] == sorted({study.CARD for study in ALL})


@pytest.mark.parametrize("study", ALL, ids=SLUGS)
def test_a_study_describes_itself(study):
    page = study.page()
    assert all(len(text) > 100 for text in page.values())
    assert study.title().endswith(".")
    assert re.fullmatch(r"[a-z][a-z0-9-]+", study.CODE)
    assert study.SOURCES
    assert study.CLAIM.endswith(".")
    assert study.ENDPOINT
    assert study.TOPIC
    assert isinstance(study.MARGIN, float)
    assert {"quick", "full"} <= set(study.PRESETS)
    json.dumps(study.PRESETS)
    stem = Path(__import__(type(study).__module__, fromlist=["x"]).__file__).stem
    assert stem == study.CODE.replace("-", "_")


@pytest.mark.parametrize("study", ALL, ids=SLUGS)
@pytest.mark.parametrize("preset", ["quick", "full"])
def test_cells_are_distinct_and_arms_are_paired(study, preset):
    data = load("digits")
    cells = study.cells(preset, range(3), data)
    assert len({cell.id for cell in cells}) == len(cells)
    by_seed = [{(c.arm, json.dumps(c.point)) for c in cells if c.seed == seed} for seed in range(3)]
    assert by_seed[0] == by_seed[1] == by_seed[2]
    assert [c.id for c in study.cells(preset, range(2), data)] == [c.id for c in cells if c.seed < 2]


def test_data_and_device_are_part_of_a_cells_name():
    study, data = ALL[0], load("digits")
    names = {study.cells("quick", [0], data, device)[0].id for device in ("cpu", "cuda")}
    assert len(names) == 2


def test_get_finds_and_unknown_slugs_name_the_nearest():
    assert studies.get("noisy-batchnorm").CODE == "noisy-batchnorm"
    with pytest.raises(UsageError, match="noisy-batchnorm") as caught:
        studies.get("noisy-batch-norm")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no study is called 'zzz': `normscope study list` shows all names"):
        studies.get("zzz")


def test_unknown_preset():
    with pytest.raises(UsageError, match="quick"):
        ALL[0].settings("tiny")
