"""What was written is read, or the file that is not what was written is named: bit by bit, file by file."""

import itertools
import json
import random
import shutil
from pathlib import Path

import pytest

from kit.cell_writer import CONFIG, cell_of, records_of
from kit.parts import filled
from normscope._errors import StoreError
from normscope.records import Cell, Record, Store, claim_cell, claims

Told = tuple[object, ...]


def told_by(folder: Path) -> Told:
    """All that a reader is told of a run."""
    store = Store.open(folder)
    frame = store.frame()
    facts = [(claim.cell, claim.run, dict(claim.facts)) for claim in claims(folder)]
    return dict(store.config), dict(store.provenance), store.cells(), store.wall_times(), frame.rows(), facts


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """A run of cells and a run of a scope."""
    cells = tmp_path_factory.mktemp("cells")
    store = Store.create(cells, CONFIG)
    for seed in range(3):
        store.write_cell(cell_of(seed), records_of(cell_of(seed))[:40], wall_s=1.25 * seed)
    scope = tmp_path_factory.mktemp("scope")
    filled(scope, 4)
    claim_cell(scope, "scope", facts={"model": "MLP", "steps": 4})
    return {"cells": cells, "scope": scope}


def refusal(folder: Path, before: Told) -> str:
    """Return the line in which a folder is refused; empty where it tells what it told before."""
    try:
        assert told_by(folder) == before
    except StoreError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["cells", "scope"])
def test_a_flipped_bit_is_named_or_changes_nothing(whole, tmp_path: Path, kind: str) -> None:
    before, draw = told_by(whole[kind]), random.Random(7)
    folder = tmp_path / "run"
    shutil.copytree(whole[kind], folder)
    names = sorted(path.name for path in folder.iterdir())
    refused = 0
    for k in range(160):
        file = folder / names[k % len(names)]
        content = file.read_bytes()
        bit = draw.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        if file.name == "scope-scope.json":
            told_by(folder)  # a claim that cannot be read tells what its name tells, see below
        elif said := refusal(folder, before):
            refused += 1
            assert file.name in said
            assert "\n" not in said
        file.write_bytes(content)
    assert refused > 90
    assert told_by(folder) == before


@pytest.mark.parametrize("kind", ["cells", "scope"])
def test_a_claim_that_was_changed_tells_no_more_than_its_name(whole, tmp_path: Path, kind: str) -> None:
    shutil.copytree(whole["scope"], tmp_path / "run")
    (path,) = (tmp_path / "run").glob("scope-scope.json")
    text = path.read_text()
    path.write_text(text.replace('"steps": 4', '"steps": 5') if kind == "scope" else text.replace("MLP", "CNN"))
    (claim,) = claims(tmp_path / "run")
    assert (claim.cell, claim.run, dict(claim.facts)) == ("scope", 1, {})


@pytest.mark.parametrize("kind", ["cells", "scope"])
def test_parts_that_change_places_are_named(whole, tmp_path: Path, kind: str) -> None:
    before = told_by(whole[kind])
    names = sorted(path.name for path in whole[kind].iterdir() if path.name != "run.json")
    pairs = [(a, b) for a, b in itertools.combinations(names, 2) if a.partition(".")[2] == b.partition(".")[2]]
    assert len(pairs) >= 6
    for number, (one, other) in enumerate(pairs):
        folder = tmp_path / str(number)
        shutil.copytree(whole[kind], folder)
        shutil.copy(whole[kind] / one, folder / other)
        shutil.copy(whole[kind] / other, folder / one)
        said = refusal(folder, before)
        assert one in said or other in said


HURT = {
    "emptied": lambda content: b"",
    "halved": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "doubled": lambda content: content + content,
    "with a byte more": lambda content: content + b"\n\0",
    "another file": lambda content: b"PAR1" + bytes(100) + b"PAR1",
    "text": lambda content: b"[1, 2]",
    "nested": lambda content: b"[" * 100_000,
}


@pytest.mark.parametrize("kind", ["cells", "scope"])
@pytest.mark.parametrize("how", HURT)
def test_a_file_that_was_cut_or_lengthened_is_named(whole, tmp_path: Path, kind: str, how: str) -> None:
    before = told_by(whole[kind])
    folder = tmp_path / "run"
    shutil.copytree(whole[kind], folder)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        file.write_bytes(HURT[how](content))
        if file.name != "scope-scope.json":  # its claim tells what its name tells, see above
            said = refusal(folder, before)
            assert file.name in said or (file.suffix == ".json" and how == "without its last byte")  # its line's end
            assert len(said) < 400
        file.write_bytes(content)
    assert told_by(folder) == before


def test_a_part_under_another_name_is_not_counted_twice(whole, tmp_path: Path) -> None:
    """A copied part has the digest of the name that it was written under."""
    folder = tmp_path / "scope"
    shutil.copytree(whole["scope"], folder)
    part = max(folder.glob("scope-*.parquet"))
    flushes = "-00000003-00000003-"
    assert flushes in part.name
    copied = folder / part.name.replace(flushes, "-00000009-00000009-")
    shutil.copy(part, copied)
    with pytest.raises(StoreError, match=copied.name):
        told_by(folder)


def test_cells_under_other_names_are_refused(whole, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    shutil.copytree(whole["cells"], folder)
    cell = cell_of(0).id
    shutil.copy(folder / f"cell-{cell}.json", folder / "cell-0123456789abcdef.json")
    shutil.copy(folder / f"part-{cell}.parquet", folder / "part-0123456789abcdef.parquet")
    with pytest.raises(StoreError, match=r"cell-0123456789abcdef\.json is damaged; delete it and run again"):
        told_by(folder)


def test_what_is_damaged_is_computed_anew_after_it_is_deleted(whole, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    shutil.copytree(whole["cells"], folder)
    before = told_by(folder)
    (folder / f"part-{cell_of(1).id}.parquet").write_bytes(b"")
    with pytest.raises(StoreError, match="run again: its cell is then computed anew"):
        Store.open(folder).frame()
    (folder / f"part-{cell_of(1).id}.parquet").unlink()
    store = Store.create(folder, CONFIG)
    assert store.write_cell(cell_of(1), records_of(cell_of(1))[:40], wall_s=1.25)
    assert told_by(folder) == before


ODD = ["lr=[1]", "lr=?", "lr=*", "a{b,c}", "~", "%20", "a'b", 'a"b', "ü b", "#1", "$HOME", "s3", "-x"]


@pytest.mark.parametrize("name", ODD)
def test_names_of_folders_are_no_patterns(tmp_path: Path, name: str) -> None:
    """A folder with a name that is a pattern is read by itself, not with the neighbours that the pattern fits."""
    others = ("lr=1", "lr=2", "ab", "ac", "x", "s3x")
    for value, folder in enumerate((*others, name)):
        store = Store.create(tmp_path / folder, {"a": 1})
        cell = Cell("demo", "bn", 0)
        store.write_cell(cell, [Record(cell.id, 0, "p", "", "loss", float(value))], wall_s=0)
    assert Store.open(tmp_path / name).frame()["value"].to_list() == [len(others)]


def test_runs_of_the_first_layout_are_read_and_continued(whole, tmp_path: Path) -> None:
    """They have no digests; what their marks know, the number of records, is held against their parts."""
    folder = tmp_path / "cells"
    shutil.copytree(whole["cells"], folder)
    for file in folder.glob("*.json"):
        told = json.loads(file.read_text())
        told.pop("check")
        told.pop("part", None)
        file.write_text(json.dumps(told | ({"format": 1} if file.name == "run.json" else {})))
    assert told_by(folder) == told_by(whole["cells"])
    store = Store.create(folder, CONFIG)
    store.write_cell(cell_of(3), records_of(cell_of(3))[:40], wall_s=1)
    assert len(store.cells()) == 4
    one, other = (folder / f"part-{cell_of(seed).id}.parquet" for seed in (0, 3))
    Store.create(tmp_path / "short", CONFIG).write_cell(cell_of(0), records_of(cell_of(0))[:39], wall_s=1)
    shutil.copy(tmp_path / "short" / one.name, one)
    with pytest.raises(StoreError, match=one.name):
        store.frame()
    assert other.exists()


def test_a_layout_that_lost_its_digests_is_not_taken_for_the_first(whole, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    shutil.copytree(whole["cells"], folder)
    mark = folder / f"cell-{cell_of(2).id}.json"
    told = json.loads(mark.read_text())
    mark.write_text(json.dumps({key: value for key, value in told.items() if key not in ("check", "part")}))
    with pytest.raises(StoreError, match=mark.name):
        told_by(folder)


def test_records_without_their_run_file_are_not_taken_up(whole, tmp_path: Path) -> None:
    """Another configuration would vouch for them."""
    folder = tmp_path / "cells"
    shutil.copytree(whole["cells"], folder)
    (folder / "run.json").unlink()
    for config in (CONFIG, {"other": 1}):
        with pytest.raises(StoreError, match=r"holds records without their run\.json.*put a copy of it back"):
            Store.create(folder, config)
    assert not (folder / "run.json").exists()


def test_cells_that_another_file_of_the_study_made_are_named(tmp_path: Path) -> None:
    """A copied run file does not make them its own, though the cells' names are equal."""
    for name, source in (("old", "aaaa"), ("new", "bbbb")):
        store = Store.create(tmp_path / name, {"source_file": source, "versions": {"torch": "1"}})
        store.write_cell(cell_of(0), records_of(cell_of(0))[:9], wall_s=1)
    shutil.copy(tmp_path / "new" / "run.json", tmp_path / "old" / "run.json")
    with pytest.raises(StoreError, match=f"cell-{cell_of(0).id}.json was made by another file of the study"):
        Store.open(tmp_path / "old").frame()
    assert Store.open(tmp_path / "new").frame().height == 9


def test_a_part_that_is_gone_is_named_and_computed_anew(whole, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    shutil.copytree(whole["cells"], folder)
    before, part = told_by(folder), folder / f"part-{cell_of(2).id}.parquet"
    part.unlink()
    with pytest.raises(StoreError, match=f"{part.name} is gone; run again: its cell is then computed anew"):
        Store.open(folder).frame()
    store = Store.create(folder, CONFIG)
    assert cell_of(2).id not in store.completed()
    assert store.write_cell(cell_of(2), records_of(cell_of(2))[:40], wall_s=2.5)
    assert told_by(folder) == before


def test_a_cell_that_was_changed_after_it_was_named_is_refused(tmp_path: Path) -> None:
    store, cell = Store.create(tmp_path, CONFIG), cell_of(0)
    cell.settings["note"] = 1  # type: ignore[index]  # as careless code does
    with pytest.raises(StoreError, match="was changed after it was named"):
        store.write_cell(cell, records_of(cell), wall_s=1)
    assert store.completed() == set()
