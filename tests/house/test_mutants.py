"""The tool behind ``make mutants``: which mutants it makes, how it puts them in, and what it says of a planted room."""

import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("mutmut", reason="only `make mutants` installs it")

TOOL = Path(__file__).resolve().parents[2] / "benchmarks/mutants.py"

ROOM = '''
"""A room of its own."""

import functools
from collections.abc import Callable

Number = Callable[[int], int]
BOUND = 3


def larger(a: "int | None", b: int = 2) -> bool:
    """Whether a > b + 1 holds."""
    if b < 0:
        raise ValueError("b is less than " + str(0))
    return a > b


class Box:
    SIDE = 4

    @property
    def area(self):
        return self.SIDE * self.SIDE

    @classmethod
    @functools.cache
    def twice(cls, *, by=2):
        def inner(x):
            return x * by

        return inner(cls.SIDE)
'''


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("mutants_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants_tool"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a room ``box`` and tests that leave three lines of it without a check."""
    files = {
        "src/normscope/__init__.py": "",
        "src/normscope/box.py": ROOM,
        "tests/box/test_box.py": """
            from normscope.box import BOUND, Box, larger

            def test_all_but_the_bound_of_larger():
                assert larger(5, 3) and not larger(1, 3) and larger(3) and not larger(2)
                assert Box().area == 16 and Box.twice() == 8
        """,
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(textwrap.dedent(text).lstrip())
    return tmp_path


def test_a_seed_draws_the_same_mutants_one_a_line_and_none_of_a_text(tool, checkout):
    file = checkout / "src/normscope/box.py"
    drawn = tool.sample(file, checkout, 40, seed=0)
    assert drawn == tool.sample(file, checkout, 40, seed=0)
    assert drawn != tool.sample(file, checkout, 40, seed=1)
    assert len({mutant.line for mutant in drawn}) == len(drawn) == 10
    lines = file.read_text().splitlines()
    assert not any(text in lines[mutant.line - 1] for mutant in drawn for text in ('"""', "import", "Number"))
    assert {m.operator for m in drawn if "raise" in lines[m.line - 1]} == {"without_statement"}


@pytest.mark.parametrize(
    ("old", "new", "before", "after"),
    [
        ("return a > b", "return a >= b", "larger(2)", True),
        ("b: int = 2", "b: int = 0", "larger(2)", True),
        ("self.SIDE * self", "self.SIDE + self", "Box().area", 8),
        ("return x * by", "return x + by", "Box.twice(by=5)", 9),
        ("by=2", "by=3", "Box.twice()", 12),
    ],
)
def test_a_mutant_is_put_into_functions_that_are_there_already(tool, checkout, monkeypatch, old, new, before, after):
    file = checkout / "src/normscope/box.py"
    spec = importlib.util.spec_from_file_location("planted_box", file)
    box = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "planted_box", box)
    spec.loader.exec_module(box)
    text = file.read_text()
    assert text.count(old) == 1
    mutant = tool.Mutant("src/normscope/box.py", 1, "planted", text, text.replace(old, new))
    assert tool.put_in(mutant, checkout)
    assert eval(before, vars(box)) == after


@pytest.mark.parametrize(("old", "new"), [("BOUND = 3", "BOUND = 4"), ("SIDE = 4", "SIDE = 5")])
def test_a_constant_needs_a_fresh_interpreter(tool, checkout, monkeypatch, old, new):
    file = checkout / "src/normscope/box.py"
    spec = importlib.util.spec_from_file_location("planted_box", file)
    box = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "planted_box", box)
    spec.loader.exec_module(box)
    text = file.read_text()
    assert not tool.put_in(tool.Mutant("src/normscope/box.py", 1, "planted", text, text.replace(old, new)), checkout)


def test_the_survivors_are_the_lines_that_no_test_holds(checkout, tmp_path):
    out = tmp_path / "figures.json"
    words = [sys.executable, TOOL, "box", "--root", checkout, "--json", out, "--seed", "3"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["mutants"] == 10
    left = [before for _, before, _ in figures["survivors"]]
    assert {line.partition(" ")[0] for line in left} <= {"BOUND", "if", "raise"}
    assert "BOUND = 3" in left
    assert 'raise ValueError("b is less than " + str(0))' in left
    assert figures["caught"] == 10 - len(left)
    assert f"box: {10 - len(left)} of 10" in done.stdout
    assert (checkout / "src/normscope/box.py").read_text() == ROOM.lstrip()
