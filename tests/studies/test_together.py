"""Studies that train all seeds at once: of each cell the records that it has alone."""

import pytest

from kit.small_studies import SMALL, settings
from normscope import studies
from normscope.studies.cells import SEEDS_AT_ONCE, groups_of
from normscope.studies.lab.data import load

#: Steps are few and rates small enough, in small, that roundings of float32 do not grow.
RTOL = 2e-3


def groups(slug, patch, seeds=SEEDS_AT_ONCE):
    study = studies.get(slug)
    patch.setattr(type(study), "PRESETS", {"quick": settings(slug)})
    cells = study.cells("quick", range(seeds), load("digits"))
    return study, groups_of(study, [cell for cell in cells if study.together(cell)])


def stacked():
    found = []
    for study in studies.all():
        if study.CODE in SMALL:
            with pytest.MonkeyPatch.context() as patch:
                if groups(study.CODE, patch, 1)[1]:
                    found.append(study.CODE)
    return found


def test_some_studies_do():
    assert {"fewer-iterations", "init-tolerance", "learning-rate-tolerance"} <= set(stacked())


@pytest.mark.trains
@pytest.mark.parametrize("slug", stacked())
def test_of_each_cell_the_records_that_it_has_alone(slug, monkeypatch):
    study, found = groups(slug, monkeypatch)
    one_of_each = {(group[0].arm, *group[0].point.keys()): group for group in found}
    data = load("digits")
    for group in one_of_each.values():
        assert len(group) == SEEDS_AT_ONCE
        done = [(cell, list(records)) for cell, records in study.run_cells(group, data, "cpu")]
        assert [cell for cell, _ in done] == group
        for cell, records in done[1:3]:
            alone = list(study.run_cell(cell, data, "cpu"))
            assert [(r.cell, r.step, r.probe, r.site, r.name) for r in records] == [
                (r.cell, r.step, r.probe, r.site, r.name) for r in alone
            ]
            for a, b in zip(records, alone, strict=True):
                assert a.value == pytest.approx(b.value, rel=RTOL, abs=2e-5, nan_ok=True), (a, b)


def test_convolutions_are_run_seed_by_seed():
    study = studies.get("learning-rate-tolerance")
    assert not any(study.together(cell) for cell in study.cells("full", [0], load("digits")))
