"""What the README says runs."""

import re
from pathlib import Path

import pytest

import normscope as ns
from normscope import checking
from normscope.records import Outcome

README = Path(__file__).parents[2] / "README.md"


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S))
    with pytest.warns(checking.FindingWarning, match="NS122 redundant-bias at step 0"):
        exec(compile(code, str(README), "exec"), {})
    assert (tmp_path / "page.html").is_file()
    assert "shape: (" in capsys.readouterr().out


def test_its_commands_and_files_exist():
    text = README.read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (README.parent / path).is_file(), path
    known = {"demo", "study", "check", "compare", "example", "report", "explain", "bench", "watch", "rules"}
    named = set(re.findall(r"^normscope (\w+)", text, re.M))
    assert named <= known
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make (\w+)", text, re.M):
        assert f"\n{target}:" in makefile, target


def test_its_verdicts_are_of_studies_that_exist():
    table = re.search(r"<!-- verdicts: begin -->(.*?)<!-- verdicts: end -->", README.read_text(encoding="utf-8"), re.S)
    listed = " ".join(table.group(1).split())
    rows = re.findall(r"- (.*?) \*\*(.*?):\*\* .*?\(`([\w-]+)`\)", listed)
    assert len(rows) == 4
    for claim, words, slug in rows:
        assert claim == ns.study(slug).CLAIM
        assert words.startswith("Depends on the ") or words.lower() in set(Outcome)


def test_it_counts_the_probes():
    words = {18: "Eighteen", 19: "Nineteen", 20: "Twenty"}
    assert f"\n{words[len(ns.probes.all())]} probes, each" in README.read_text(encoding="utf-8")
