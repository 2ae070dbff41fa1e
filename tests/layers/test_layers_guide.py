"""The guide to the layers is true: its examples run, and the tests that it names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "layers.md").read_text()


def test_its_examples_run_in_order():
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(blocks) >= 5
    for block in blocks:
        exec(compile(block, "docs/layers.md", "exec"), names)


def test_the_tests_it_names_are_there():
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    there = set(re.findall(r"^def (test_\w+)", "".join(p.read_text() for p in ROOT.glob("tests/*/test_*.py")), re.M))
    assert len(named) >= 14
    assert named <= there, named - there
