"""Cells of another run that were copied into a run's folder are refused, not judged."""

import shutil

import pytest

from kit.runner_studies import STUDIES
from normscope._errors import StoreError
from normscope.records import Cell, Record, Store
from normscope.records.provenance import made_elsewhere, version
from normscope.studies.runs import Run


@pytest.mark.parametrize("kind", ["study", "data"])
def test_a_copied_cell_is_named(tmp_path, kind):
    study = STUDIES["null"]()
    study.run(out=tmp_path, seeds=1, workers=1)
    store = Store.open(tmp_path / "null")
    cell = store.cells()[0]
    foreign = (
        Cell("twins", cell.arm, cell.seed, cell.point, cell.settings)
        if kind == "study"
        else Cell("null", cell.arm, cell.seed, cell.point, {**cell.settings, "data": "0" * 16})
    )
    other = Store.create(tmp_path / "other", {**store.config, "note": "another run"})
    other.write_cell(foreign, [Record(foreign.id, 0, "training", "", "loss", 1.0)], wall_s=0)
    assert Run(study, store).evidence().seeds == (0,)
    for path in other.path.glob(f"*{foreign.id}*"):
        shutil.copy(path, store.path)
    with pytest.raises(StoreError, match=f"not of this run .*: delete .*cell-{foreign.id}.json"):
        Run(study, store).evidence()


def test_records_of_another_version_are_said_to_be():
    here = {name: version(name) for name in ("normscope", "torch", "numpy")}
    assert made_elsewhere(here) == ""
    said = made_elsewhere(here | {"torch": "1.0"})
    assert said == f"The records were made with torch 1.0 (here: {version('torch')})."
    assert "normscope 9.9" in made_elsewhere(here | {"normscope": "9.9", "torch": "1.0"})
