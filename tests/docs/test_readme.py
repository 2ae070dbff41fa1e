"""What the README says runs, and its numbers are those of the demo's page and of the evidence."""

import re
from pathlib import Path

import normscope as ns
from kit.guides import blocks
from normscope.explain import committed
from normscope.records import Outcome
from normscope.report import amount_of

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")


def between(name):
    """Return the text between two marks, on one line."""
    return " ".join(re.search(rf"<!-- {name}: begin -->(.*?)<!-- {name}: end -->", TEXT, re.S).group(1).split())


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks(TEXT, "python")), str(README), "exec"), {})
    assert (tmp_path / "page.html").is_file()
    assert "stands out" in capsys.readouterr().out


def test_it_is_short_and_installs():
    assert len(TEXT.splitlines()) <= 120
    assert "pip install normscope" in blocks(TEXT, "sh")[0]


def test_its_files_and_targets_exist():
    for path in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", TEXT):
        assert (README.parent / path).is_file(), path
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make (\w+)", TEXT):
        assert f"\n{target}:" in makefile, target


def test_its_answers_are_those_of_the_page_of_the_demo():
    page = " ".join((README.parent / "docs/demo.md").read_text(encoding="utf-8").split())
    answers = re.findall(r"\d+\. \*(.*?)\* (.*?)(?= \d+\. \*|$)", between("demo"))
    assert len(answers) >= 3
    for asked, answer in answers:
        assert f"*{asked}*" in page
        first = answer.split(". About")[0].rstrip(".")
        assert first in page, first


def test_the_page_of_the_demo_has_every_question():
    page = (README.parent / "docs/demo.md").read_text(encoding="utf-8")
    assert re.findall(r"^(\d+)\. \*", page, re.MULTILINE) == [str(q.NUMBER) for q in ns.comparing.all_questions()]


def test_its_findings_are_those_of_the_evidence():
    studies = {study.slug: study for study in committed().studies}
    found = re.findall(r"- (.*?) \(`([\w-]+)`\)", between("found"))
    assert 5 <= len(found) <= 8
    for said, slug in found:
        verdict = studies[slug].verdict
        amounts = {amount_of(each) for each in (verdict, *verdict.parts)}
        shown = {f"{point} {interval}" for point, interval in re.findall(r"([\d.]+)[^()\d]*(\([^)]* to [^)]*\))", said)}
        known = {" ".join(re.search(r"([\d.]+).*?(\(.*\))", each).groups()) for each in amounts if " to " in each}
        assert shown <= known, (slug, shown - known)
        assert shown or amount_of(verdict).removeprefix("largest error ") in said, slug
    assert dict(map(reversed, found))["landscape-smoothness"].endswith("no effect that matters.")
    parts = {part.name: part for part in studies["landscape-smoothness"].verdict.parts}
    assert parts["loss_range@predicted-decrease"].outcome is Outcome.NO_EFFECT


def test_its_finding_is_that_of_the_example(run):
    example = README.parent / "docs/examples/train_eval_gap.py"
    printed = run("check", f"{example}:make_case", code=1).stdout
    for page in (TEXT, (README.parent / "docs/checking.md").read_text(encoding="utf-8")):
        (block,) = (block for block in blocks(page, "text") if "2.882" in block)
        at = re.escape(_NUMBERS.sub("@", " ".join(block.split())))
        numbers = at.replace("@", r"(-?\d+(?:\.\d+)?(?:e-\d+)?)")
        now = re.search(numbers, " ".join(printed.split()))
        assert now, block
        # Another CPU rounds otherwise; the parts that are next to nothing are left out.
        for shown, measured in zip(_NUMBERS.findall(block), now.groups(), strict=True):
            assert abs(float(measured) - float(shown)) <= 0.1 * abs(float(shown)) + 0.01, (shown, measured)


def test_it_counts_the_probes_and_claims():
    words = {18: "eighteen", 19: "nineteen", 20: "twenty"}
    assert f"the {words[len(ns.probes.all())]} probes" in TEXT
    assert f"all {len(committed().studies)} claims" in TEXT
