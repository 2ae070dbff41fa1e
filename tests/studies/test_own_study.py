"""A study of one's own: from the template to a verdict, and what is refused on the way."""

import json
import sys
from pathlib import Path

import pytest

from normscope.studies import find as _find

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "decayed_affine.py"


@pytest.fixture
def run(run, refuse, tmp_path, monkeypatch):
    """Run the command line in an empty folder; own studies are forgotten between runs, as between processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_find, "_OWN", {})  # white box: studies of files that this process has read

    def fresh(*words, code=0):
        _find._OWN.clear()
        return refuse(*words) if code == 2 else run(*words, code=code)

    return fresh


def _smaller(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_template_runs_as_it_stands_and_its_rule_stands_before_the_run(run):
    run("study", "new", "my_claim.py")
    file = Path("my_claim.py")
    _smaller(file, '"steps": 100', '"steps": 12')
    words = ["study", "run", "my_claim.py", "--seeds", 2, "--out", "runs", "--json"]
    verdict = json.loads(run(*words, "--workers", 2).stdout)["verdicts"][0]
    assert verdict["study"] == "my-claim"
    assert verdict["effect"]["n"] == 2
    # The folder alone executes nothing; with the file named it is judged again.
    assert "name its file with --study" in run("report", "runs", code=2)
    again = json.loads(run("report", "runs", "--study", "my_claim.py", "--json").stdout)["verdicts"][0]
    assert again["effect"] == verdict["effect"]
    assert "A larger eps" in run("explain", "my_claim.py").stdout
    # Another margin after the run is another study.
    _smaller(file, "math.log(1.1)", "math.log(1.01)")
    assert "has changed since" in run("report", "runs", "--study", "my_claim.py", code=2)
    assert "another configuration" in run(*words, code=2)


def test_the_worked_example_runs(run, tmp_path):
    file = tmp_path / "decayed.py"
    file.write_bytes(EXAMPLE.read_bytes())
    _smaller(file, '"steps": 400', '"steps": 15')
    out = json.loads(run("study", "run", file, "--seeds", 2, "--workers", 1, "--json").stdout)
    assert "mean |gamma|" in out["verdicts"][0]["reason"]
    assert Path(out["report"]).is_file()


def test_new_writes_over_nothing_and_wants_a_name_that_can_be_a_slug(run):
    run("study", "new", "my_claim.py")
    before = Path("my_claim.py").read_bytes()
    assert "exists already" in run("study", "new", "my_claim.py", code=2)
    assert Path("my_claim.py").read_bytes() == before
    for name in ("claim.txt", "1.py", "noisy_batchnorm.py", "gone/claim.py"):
        run("study", "new", name, code=2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1 / 0", "ZeroDivisionError: division by zero (mine.py:1)"),
        ("import os\ndef (", "SyntaxError: invalid syntax (mine.py:2)"),
        ("raise SystemExit(3)", "SystemExit: 3 (mine.py:1)"),
        ("x = 1", "holds 0"),
        ("from normscope.studies import AbstractStudy\nclass A(AbstractStudy):\n    pass", "lacks"),
    ],
)
def test_a_file_that_is_no_study_is_refused_in_a_line(run, text, said):
    Path("mine.py").write_text(text, encoding="utf-8")
    assert said in run("study", "run", "mine.py", code=2)
    assert "cannot read" in run("study", "run", "gone.py", code=2)


def test_a_study_may_import_what_lies_beside_it_also_in_worker_processes(run):
    run("study", "new", "my_claim.py")
    Path("own_steps.py").write_text("STEPS = 12\n\n\ndef halved(rate):\n    return rate / 2\n", encoding="utf-8")
    file = Path("my_claim.py")
    _smaller(file, '"steps": 100', '"steps": own_steps.STEPS')
    _smaller(file, "norm = batch_norm(", "own_steps.halved(1)\n        norm = batch_norm(")
    file.write_text(
        file.read_text(encoding="utf-8").replace("\nimport ", "\nimport own_steps\nimport ", 1), encoding="utf-8"
    )
    try:
        out = json.loads(run("study", "run", "my_claim.py", "--seeds", 2, "--workers", 2, "--json").stdout)
        assert out["verdicts"][0]["effect"]["n"] == 2
    finally:
        sys.modules.pop("own_steps", None)


def test_an_own_study_cannot_take_the_name_of_one_of_the_package(run):
    run("study", "new", "my_claim.py")
    _smaller(Path("my_claim.py"), '"my-claim"', '"noisy-batchnorm"')
    assert "choose another CODE" in run("study", "run", "my_claim.py", code=2)


def test_one_study_that_fails_does_not_lose_the_others(run):
    run("study", "new", "good_one.py")
    run("study", "new", "bad_one.py")
    _smaller(Path("good_one.py"), '"steps": 100', '"steps": 12')
    failing = 'def sizes(self, cell):\n        raise ValueError("no\\nluck")\n\n    def contrasts('
    _smaller(Path("bad_one.py"), "def contrasts(", failing)
    done = run("study", "run", "bad_one.py", "good_one.py", "--seeds", 2, "--workers", 1, "--json", code=1)
    document = json.loads(done.stdout)
    assert [verdict["study"] for verdict in document["verdicts"]] == ["good-one"]
    assert document["failed"] == {"bad-one": "ValueError: no"}
    assert document["seconds"]["good-one"] > 0
    told = run("study", "run", "bad_one.py", "good_one.py", "--seeds", 2, "--workers", 1, code=1).stderr
    assert "1 of 2: bad-one: failed: ValueError: no" in told
    assert "2 of 2: good-one: " in told
    assert "bad-one failed and is not in there" in told


def test_explain_asks_which_where_a_study_and_a_probe_share_a_name(run):
    assert "say study:conditioning or probe:conditioning" in run("explain", "conditioning", code=2)
    assert run("explain", "study:conditioning").stdout != run("explain", "probe:conditioning").stdout
    assert "did you mean" in run("explain", "probe:conditionin", code=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "gone"), "gone: no such file"),
        (("--preset", "huge"), "no preset 'huge'"),
        (("--out", "a_file/runs"), "cannot make"),
    ],
)
def test_what_is_wrong_for_all_studies_is_said_once_and_before_anything_runs(run, words, said):
    Path("a_file").write_text("")
    for command in (("study", "run", "--all"), ("demo",)):
        if command == ("demo",) and "--preset" in words:  # it has one preset
            continue
        assert said in run(*command, *words, code=2)  # one line, which `run` holds it to
        assert sorted(Path().iterdir()) == [Path("a_file")]
