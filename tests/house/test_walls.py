"""The walls of the house: no circles of imports, nothing imports upward, private names stay at home, short files.

What breaks a wall today is listed in ``debts.toml``: no more than that, and no less. Each wall is tried on a planted
violation as well, so that a wall that sees nothing is noticed.
"""

import textwrap
import tomllib
from collections import Counter
from pathlib import Path

import grimp
import pytest

from kit.house import FILE_LINES, FUNCTION_LINES, House

ROOT = Path(__file__).resolve().parents[2]
DEBTS = ROOT / "tests/house/debts.toml"
FILES_WITH_PRIVATE_NAMES = 25


@pytest.fixture(scope="module")
def house():
    """The checkout that this file is in."""
    return House(ROOT)


@pytest.fixture(scope="module")
def floors():
    """The floors of the import contract, highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [[room.strip().removeprefix("normscope.") for room in floor.split("|")] for floor in layers]


@pytest.fixture
def plant(tmp_path):
    """Write files, by path below the root of a checkout, and read the checkout."""

    def plant(**texts):
        for path in ("src/normscope/__init__.py", "tests/conftest.py"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        for path, text in texts.items():
            file = tmp_path / f"{path}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / "__init__.py").touch()
            file.write_text(textwrap.dedent(text))
        return House(tmp_path)

    return plant


def owed(wall, present):
    """Compare what breaks a wall with what ``debts.toml`` lists for it."""
    listed = tomllib.loads(DEBTS.read_text())[wall]
    assert len(listed) == len(set(listed))
    new = sorted(set(present) - set(listed))
    mended = sorted(set(listed) - set(present))
    assert not new, f"{wall}, new: " + "; ".join(new)
    assert not mended, f"{wall}: mended, so take it out of {DEBTS.relative_to(ROOT)}: " + "; ".join(mended)


# What breaks each wall.


def circles(house):
    # Imports for types alone count too: two files that name each other's types are not understood one at a time.
    return [" <-> ".join(circle) for circle in house.circles(typing=True)]


def private_across_folders(house):
    return {f"{use.path}: {use.target}" for use in house.private_across_folders()}


def room_of_test(house, path):
    """Return the room whose tests a file holds: that of its folder, or of its own name; "" for a file of no room."""
    rooms = [part for part in path.parts[1:-1] if part in house.rooms]
    own = path.stem.removeprefix("test_")
    return rooms[0] if rooms else own if own in house.rooms else ""


def private_names_of_other_rooms(house):
    return {
        f"{use.path}: {use.target}"
        for use in house.private_in_tests()
        if use.target.split(".")[1] != room_of_test(house, use.path)
    }


def white_boxes_without_a_reason(house):
    """Private names of the room that a file tests, where no use of them in the file has ``# white box: REASON``."""
    own = [use for use in house.private_in_tests() if use.target.split(".")[1] == room_of_test(house, use.path)]
    said = {use[:2] for use in own if house.test_file(use.path).says_why(use.line)}
    return {f"{use.path}: {use.target}" for use in own if use[:2] not in said}


def units_without_a_test_file(house):
    tested = {(room_of_test(house, file.path), file.path.name) for file in house.tests}
    return {
        str(unit.path)
        for room in ("rules", "studies")
        for unit in house.units(room)
        if (room, f"test_{unit.path.name}") not in tested
    }


def present(house):
    """Return what breaks each wall that has a list in ``debts.toml``."""
    return {
        "circles": circles(house),
        "private_across_folders": private_across_folders(house),
        "private_names_of_other_rooms": private_names_of_other_rooms(house),
        "white_boxes_without_a_reason": white_boxes_without_a_reason(house),
        "units_without_a_test_file": units_without_a_test_file(house),
        "long_functions": house.long_functions(),
        "long_files": house.long_files(),
    }


# The walls.


def test_no_circle_of_imports(house):
    owed("circles", circles(house))


def test_nothing_imports_upward_and_siblings_do_not_know_each_other(house, floors):
    assert house.upward(floors) == set()


def test_every_room_has_a_floor(house, floors):
    rooms = [room for floor in floors for room in floor]
    assert sorted(rooms) == sorted(house.rooms)


def test_private_names_stay_in_their_folder(house):
    owed("private_across_folders", private_across_folders(house))


def test_no_test_uses_a_private_name_of_another_room(house):
    owed("private_names_of_other_rooms", private_names_of_other_rooms(house))


def test_white_box_tests_say_why(house):
    owed("white_boxes_without_a_reason", white_boxes_without_a_reason(house))


def test_few_test_files_use_private_names(house):
    count = len({use.path for use in house.private_in_tests()})
    listed = tomllib.loads(DEBTS.read_text()).get("files_with_private_names", FILES_WITH_PRIVATE_NAMES)
    assert count <= listed
    assert listed == max(count, FILES_WITH_PRIVATE_NAMES), f"files_with_private_names in {DEBTS.name} is {count} now"


def test_every_rule_and_study_has_its_test_file(house):
    assert len(house.units("rules")) >= 28
    assert len(house.units("studies")) >= 32
    owed("units_without_a_test_file", units_without_a_test_file(house))


def test_functions_are_short(house):
    owed("long_functions", house.long_functions())


def test_files_are_short(house):
    owed("long_files", house.long_files())


# Planted violations: each wall must see its own.


@pytest.mark.parametrize(
    ("statement", "late", "typing"),
    [
        ("from normscope.plots.b import B", False, False),
        ("from normscope.plots import b", False, False),
        ("import normscope.plots.b as other", False, False),
        ("from .b import B", False, False),
        ("def f():\n    from normscope.plots.b import B", True, False),
        ("import importlib\ndef f():\n    importlib.import_module('normscope.plots.b')", True, False),
        ("class C:\n    def f(self):\n        from normscope.plots import b", True, False),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from normscope.plots.b import B", False, True),
    ],
)
def test_a_planted_circle_is_seen(plant, statement, late, typing):
    house = plant(
        **{
            "src/normscope/plots/a": statement,
            "src/normscope/plots/b": "from normscope.plots.c import C",
            "src/normscope/plots/c": "from normscope.plots.a import A",
            "src/normscope/plots/d": "from normscope.plots import a, b, c",
        }
    )
    assert circles(house) == ["normscope.plots.a <-> normscope.plots.b <-> normscope.plots.c"]
    assert bool(house.circles(late=False)) == (not late and not typing)
    assert bool(house.circles()) == (not typing)


@pytest.mark.parametrize(
    ("file", "statement", "wrong"),
    [
        ("stats/a", "from normscope.studies import x", "normscope.stats.a -> normscope.studies.x"),
        ("stats/a", "def f():\n    import normscope.studies.x", "normscope.stats.a -> normscope.studies.x"),
        ("stats/a", "from normscope.plots import x", "normscope.stats.a -> normscope.plots.x"),
        ("stats/a", "from normscope import Scope", "normscope.stats.a -> normscope"),
        ("stats/a", "from normscope import __version__", None),
        ("studies/a", "from normscope.stats import x", None),
        ("stats/a", "from normscope.stats import x", None),
    ],
)
def test_a_planted_import_upward_or_aside_is_seen(plant, file, statement, wrong):
    rooms = {f"src/normscope/{room}/x": "" for room in ("studies", "plots", "stats")}
    house = plant(**rooms, **{f"src/normscope/{file}": statement})
    assert house.upward([["studies"], ["plots", "stats"]]) == ({wrong} if wrong else set())


def test_the_import_contract_counts_imports_inside_functions(tmp_path, monkeypatch):
    package = tmp_path / "planted_house"
    for file, text in {
        "__init__": "",
        "high": "",
        "low": "def f():\n    from planted_house import high\n",
    }.items():
        package.mkdir(exist_ok=True)
        (package / f"{file}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    graph = grimp.build_graph("planted_house", cache_dir=None)
    floors = ("planted_house.high", "planted_house.low")
    (found,) = graph.find_illegal_dependencies_for_layers(layers=floors)
    assert (found.importer, found.imported) == ("planted_house.low", "planted_house.high")
    assert not graph.find_illegal_dependencies_for_layers(layers=floors[::-1])


@pytest.mark.parametrize(
    ("use", "target"),
    [
        ("from normscope.surgery._pairs import Pair", "surgery._pairs"),
        ("from normscope.surgery import _pairs", "surgery._pairs"),
        ("import normscope.surgery._pairs", "surgery._pairs"),
        ("def f():\n    from normscope.surgery.fold import _absorb", "surgery.fold._absorb"),
        ("from normscope.surgery import fold\nfold._absorb()", "surgery.fold._absorb"),
        ("from normscope import surgery\nsurgery.fold._absorb()", "surgery.fold._absorb"),
        ("from normscope.surgery import fold\nsetattr(fold, '_absorb', 1)", "surgery.fold._absorb"),
        ("NAME = 'normscope.' 'surgery._pairs.Pair'", "surgery._pairs"),
        ("from normscope.surgery.fold import Fold\nFold._make(1)\nFold._order()", "surgery.fold.Fold._order"),
        ("from normscope._errors import UsageError\nfrom normscope._unit import Unit", None),
        ("from normscope.surgery.fold import Fold\nFold.__name__", None),
        ("from normscope.rules import _common\nfrom normscope.rules.other import _name", None),
    ],
)
def test_a_planted_private_name_is_seen(plant, use, target):
    house = plant(
        **{
            "src/normscope/surgery/_pairs": "class Pair: ...",
            "src/normscope/surgery/fold": "from normscope.surgery import _pairs",
            "src/normscope/rules/_common": "",
            "src/normscope/rules/other": "_name = 1",
            "src/normscope/rules/rule": use,
            "tests/rules/test_rule": use,
        }
    )
    assert private_across_folders(house) == ({f"src/normscope/rules/rule.py: normscope.{target}"} if target else set())
    foreign = {f"tests/rules/test_rule.py: normscope.{target}"} if target else set()
    assert private_names_of_other_rooms(house) == foreign


def test_a_folder_inside_sees_the_private_names_of_the_folder_around_it_and_not_the_other_way(plant):
    house = plant(
        **{
            "src/normscope/ops/_rows": "",
            "src/normscope/ops/sets/_draw": "",
            "src/normscope/ops/sets/batch": "from normscope.ops import _rows",
            "src/normscope/ops/norm": "from normscope.ops.sets import _draw",
        }
    )
    assert private_across_folders(house) == {"src/normscope/ops/norm.py: normscope.ops.sets._draw"}


@pytest.mark.parametrize(
    ("use", "fine"),
    [
        ("from normscope.rules import _nets", False),
        ("from normscope.rules import _nets  # white box", False),
        ("# white box:\nfrom normscope.rules import _nets", False),
        ("# white box: the bound is not public\n\nfrom normscope.rules import _nets", False),
        ("from normscope.rules import _nets  # white box: the bound is not public", True),
        ("# white box: the bound is\n# not public\nfrom normscope.rules import _nets", True),
    ],
)
def test_a_white_box_test_without_a_reason_is_seen(plant, use, fine):
    house = plant(**{"src/normscope/rules/_nets": "", "tests/rules/test_rule": use})
    assert white_boxes_without_a_reason(house) == (
        set() if fine else {"tests/rules/test_rule.py: normscope.rules._nets"}
    )
    assert not private_names_of_other_rooms(house)


def test_a_unit_without_a_test_file_is_seen(plant):
    unit = "class {}(AbstractRule): ..."
    house = plant(
        **{
            "src/normscope/rules/tested": unit.format("Tested"),
            "src/normscope/rules/untested": unit.format("Untested"),
            "tests/rules/test_tested": "",
            "tests/stats/test_untested": "",
            "src/normscope/stats/x": "",
        }
    )
    assert units_without_a_test_file(house) == {"src/normscope/rules/untested.py"}


def test_a_line_too_many_is_seen(plant):
    def function(lines):
        return "class C:\n    @wraps(f)\n    def f(self):\n" + "        pass\n" * (lines - 1)

    house = plant(
        **{
            "src/normscope/stats/a": function(FUNCTION_LINES),
            "src/normscope/stats/b": function(FUNCTION_LINES + 1),
            "src/normscope/stats/c": "\n" * FILE_LINES,
            "src/normscope/stats/d": "\n" * (FILE_LINES + 1),
        }
    )
    assert house.long_functions() == {"src/normscope/stats/b.py:C.f": FUNCTION_LINES + 1}
    assert house.long_files() == {"src/normscope/stats/d.py": FILE_LINES + 1}


def test_a_debt_must_be_listed_and_a_mended_one_must_not(monkeypatch, tmp_path):
    debts = tmp_path / "debts.toml"
    debts.write_text('wall = ["a", "b"]')
    monkeypatch.setitem(globals(), "DEBTS", debts)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    owed("wall", {"a", "b"})
    with pytest.raises(AssertionError, match="new: c"):
        owed("wall", {"a", "b", "c"})
    with pytest.raises(AssertionError, match=r"take it out of debts.toml: b"):
        owed("wall", {"a"})


def test_the_figures_count_what_they_say(plant):
    text = '''
    """A module."""

    # A comment.
    from normscope import stats
    from normscope.records import Cell, Store


    class Study(AbstractStudy):
        """A study,

        in lines.
        """

        def run(self):
            return stats.mean(Cell), stats.mean(Store), stats.interval
    '''
    figures = plant(**{"src/normscope/studies/claims/study": text, "tests/test_x": "\n\n"}).figures()
    assert figures["lines of docstrings"] == 5
    assert figures["lines of code"] == 5
    assert figures["lines in src"] == 16
    assert figures["lines in tests"] == 2
    assert figures["names that a study uses (median, most)"] == (4, 4)


def test_test_files_have_names_of_their_own():
    """Pytest imports a file of a folder that is no package by its name alone, and refuses a second of that name."""
    tests = Path(__file__).parents[1]
    names = [path.name for path in tests.rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    assert [name for name, count in Counter(names).items() if count > 1] == []
