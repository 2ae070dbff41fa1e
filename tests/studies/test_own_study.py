"""A study of one's own: from the template to a verdict, and what is refused on the way."""

import json
import sys
import textwrap
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
    assert [part["name"] for part in out["verdicts"][0]["parts"]] == ["gamma"]
    assert Path(out["report"]).is_file()


@pytest.fixture
def plant(run):
    """Write a study whose ``contrasts`` has another body; return its file, and the line marked ``# here``."""

    def plant(body, old="", new=""):
        run("study", "new", "mine.py")
        file = Path("mine.py")
        _smaller(file, '"steps": 100', '"steps": 12')
        if old:
            _smaller(file, old, new)
        text = file.read_text(encoding="utf-8")
        begin, end = text.index("        yield Contrast("), text.index("    def figures(")
        head = text[:begin].replace("import math\n", "import math\n\nfrom normscope.studies import Quantity\n", 1)
        text = head + textwrap.indent(textwrap.dedent(body), " " * 8) + "\n" + text[end:]
        file.write_text(text, encoding="utf-8")
        return file, next((i for i, line in enumerate(text.splitlines(), 1) if "# here" in line), None)

    return plant


STEPS = 'steps_to(0.9), "large", "small", scale="log-ratio"'
NO_REASON = ('    MARGIN_REASON = "', '    OTHER_WORDS = "')


@pytest.mark.parametrize(
    ("body", "change", "said"),
    [
        (f"yield Contrast({STEPS})  # here", NO_REASON, "a margin without a reason"),
        (f"yield Contrast({STEPS}, headline=True)\nyield Contrast({STEPS}, headline=True)  # here", (), "a second"),
        (f"yield Contrast({STEPS}, margin=0.1, equal_within=0.1)  # here", (), "a contrast has one rule"),
        (f"yield Contrast({STEPS}, margin=-0.1)  # here", (), "the margin of a contrast is -0.1"),
        ('yield "nothing of the kind"  # here', (), "yields a str"),
        (f"yield Contrast({STEPS.replace('large', 'larg')})  # here", (), "no cell has the arm 'larg'"),
    ],
)
def test_contrasts_that_no_record_can_make_right_are_refused_before_the_run(run, plant, body, change, said):
    file, line = plant(body, *change)
    message = run("study", "run", file, "--seeds", 2, "--out", "runs", "--json", code=2)
    assert said in message
    assert message.endswith(f"(mine.py:{line})")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return iter(())", "contrasts() yields no contrast"),
        ("return None", "contrasts() yields no contrast"),
        ("return [3]", "yields a int"),
    ],
)
def test_where_no_line_yields_the_method_is_named(run, plant, body, said):
    file, _ = plant(body)
    line = (
        file.read_text(encoding="utf-8")
        .splitlines()
        .index("    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:")
    )
    message = run("study", "run", file, "--seeds", 2, "--out", "runs", code=2)
    assert said in message
    assert message.endswith(f"(mine.py:{line + 1})")
    assert not Path("runs").exists()


#: What is put into the class of the template, and what is said of it before anything runs.
WRONG_BEFORE = {
    "POINTS = {'width': 'widths'}": "the setting 'widths' lists the values of 'width'",
    "POINTS = {'width': 'steps'}": "the setting 'steps' lists the values of 'width'",
    "POINTS = {'width': None}": "the setting None lists the values of 'width'",
    "PRESETS = {'quick': ['steps']}": "the preset 'quick' is an object of type list",
    "PRESETS = {3: {}}": "the preset 3 is an object of type dict",
    "SOURCES = ('a paper', None)": "SOURCES holds None",
    "VERSION = '2'": "VERSION is '2': it must be a whole number",
    "def grid(self, settings):\n        return 5": "grid() returns 5",
    "def grid(self, settings):\n        yield 'small', {}, 3": "grid() yields an object of type tuple",
    "def grid(self, settings):\n        yield None, {}": "grid() yields an object of type tuple",
    "def grid(self, settings):\n        return {}": "there is nothing to run",
    "def grid(self, settings):\n        while True:\n            yield 'small', {}": "more than 100000 points",
    "def grid(self, settings):\n        raise SystemExit(0)": "raised SystemExit: 0 (mine.py:",
    "def contrasts(self, evidence):\n        while True:\n            yield Contrast(steps_to(0.5), 'large')": (
        "more than 10000 contrasts"
    ),
    "def contrasts(self, evidence):\n        return evidence.settings['gone']": "raised KeyError: 'gone' (mine.py:",
    "def contrasts(self, evidence):\n        raise SystemExit": "raised SystemExit (mine.py:",
    "def contrasts(self):\n        return []": "takes 1 positional argument",
    "def __init__(self):\n        raise OSError('no')": "raised OSError: no (mine.py:",
    "def __init__(self, name):\n        pass": "making Mine raised TypeError",
}


@pytest.mark.parametrize("wrong", WRONG_BEFORE)
def test_a_study_that_no_run_can_make_right_is_refused_before_it_runs(run, wrong):
    run("study", "new", "mine.py")
    file = Path("mine.py")
    file.write_text(file.read_text(encoding="utf-8").rstrip("\n") + f"\n\n    {wrong}\n", encoding="utf-8")
    message = run("study", "run", file, "--seeds", 2, "--out", "runs", code=2)
    assert WRONG_BEFORE[wrong] in message
    assert "mine" in message.lower()
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("def judge(self, evidence):\n        return {'word': 'holds'}", "judge() returns an object of type dict"),
        ("def judge(self, evidence):\n        raise SystemExit(0)", "judging mine raised SystemExit: 0 (mine.py:"),
        ("def tables(self, evidence):\n        return 'ab'", "tables() gives 'a'"),
        ("def figures(self, evidence):\n        return [None]", "figures() gives None"),
        ("def together(self, cell):\n        return cell.gone", "grouping the cells of mine raised AttributeError"),
        ("def run_cells(self, cells, data, device):\n        return []", "gives no records of seed 0, 1"),
        ("def run_cells(self, cells, data, device):\n        raise SystemExit(0)", "raised SystemExit: 0 (mine.py:"),
    ],
)
def test_what_a_study_gives_is_looked_at(run, wrong, said):
    run("study", "new", "mine.py")
    file = Path("mine.py")
    _smaller(file, '"steps": 100', '"steps": 12')
    file.write_text(file.read_text(encoding="utf-8").rstrip("\n") + f"\n\n    {wrong}\n", encoding="utf-8")
    assert said in run("study", "run", file, "--seeds", 2, "--workers", 1, "--out", "runs", code=2)


def test_more_cells_than_a_run_may_have_are_refused(run):
    run("study", "new", "mine.py")
    _smaller(Path("mine.py"), "POINTS = {}", 'POINTS = {"a": "many", "b": "many"}')
    _smaller(Path("mine.py"), '"steps": 100,', '"steps": 100, "many": list(range(12)),')
    message = run("study", "run", "mine.py", "--seeds", 10_000, code=2)
    assert "10000 seeds of 288 cells are more than the 1000000 that a run may have" in message


ODD = """
def odd(evidence, **where):
    return {what}  # here

"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            ODD.format(what="1 / 0")
            + f'yield Contrast({STEPS}, premises=(Contrast(Quantity("odd", odd), "large", "small"),))',
            "judging mine raised ZeroDivisionError: division by zero (mine.py:{line})",
        ),
        (
            ODD.format(what="evidence.nothing") + 'yield Contrast(Quantity("odd", odd), "large", "small")',
            "judging mine raised AttributeError: 'Evidence' object has no attribute 'nothing' (mine.py:{line})",
        ),
        (
            'yield Contrast(Quantity("odd", lambda evidence, **where: [1.0]), "large")  # here',
            "odd: gives numbers of shape (1,) for 2 seeds: return one number for each of evidence.seeds, NaN where "
            "there is none (mine.py:{line})",
        ),
        (
            f'yield Contrast({STEPS})\nif evidence.frame.height:\n    raise KeyError("gone\\naway")  # here',
            "(mine.py:{line})",
        ),
    ],
)
def test_what_fails_at_the_records_is_a_line_of_the_users_also_in_the_report(run, plant, body, said):
    file, line = plant(body)
    for words in (("study", "run", file, "--seeds", 2, "--out", "runs"), ("report", "runs", "--study", file)):
        message = run(*words, code=2)  # one line, which `run` holds it to
        assert message.endswith(said.format(line=line))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cell_that_fails_is_a_line_of_the_users_also_in_worker_processes(run, plant, workers):
    failing = "def sizes(self, cell):\n        raise LookupError('no such size')  # here\n\n    def contrasts("
    file, line = plant(f"yield Contrast({STEPS})", "def contrasts(", failing)
    message = run("study", "run", file, "--seeds", 2, "--out", "runs", "--workers", workers, code=2)
    assert message.endswith(f" of mine raised LookupError: no such size (mine.py:{line})")
    assert "running arm '" in message


def test_a_figure_and_a_grid_that_fail_are_lines_of_the_users(run, plant):
    file, line = plant(f"yield Contrast({STEPS})", '"loss")]', '"loss")][7]  # here')
    message = run("study", "run", file, "--seeds", 2, "--out", "runs", code=2)
    assert message.endswith(f"drawing mine raised IndexError: list index out of range (mine.py:{line})")
    file.unlink()
    failing = "def grid(self, settings):\n        return settings['gone']  # here\n\n    def contrasts("
    file, line = plant(f"yield Contrast({STEPS})", "def contrasts(", failing)
    assert f"KeyError: 'gone' (mine.py:{line})" in run("study", "run", file, "--seeds", 2, "--out", "others", code=2)


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("MARGIN = -0.1", "MARGIN is -0.1: give the smallest size that matters"),
        ("MARGIN = None", "MARGIN is None: it must be a number"),
        ("MARGIN = 1.0; CODE = 7", "CODE is 7: it must be a text"),
        ("MARGIN = 1.0; CLAIM = None", "CLAIM is None: it must be a text"),
        ("MARGIN = 1.0; SOURCES = 'a book'", "SOURCES is 'a book': it must be a tuple of texts"),
    ],
)
def test_an_attribute_of_the_wrong_kind_is_refused_with_the_file(run, plant, said, refused):
    file, _ = plant(f"yield Contrast({STEPS})", "MARGIN = math.log(1.1)", said)
    assert refused in run("study", "run", file, code=2)


def test_contrasts_that_need_records_are_no_error_before_the_run(run, plant):
    body = f"""
    best = sorted(evidence.frame["arm"].unique())[0]  # fails without records
    yield Contrast({STEPS}, name=best)
    """
    file, _ = plant(body)
    document = json.loads(run("study", "run", file, "--seeds", 2, "--out", "runs", "--json").stdout)
    assert document["verdicts"][0]["name"] == "large"


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
    # A number of a class of that file: a worker process cannot make it without the class.
    Path("own_steps.py").write_text("STEPS = 12\n\n\nclass Rate(float):\n    pass\n", encoding="utf-8")
    file = Path("my_claim.py")
    _smaller(file, '"steps": 100,', '"steps": own_steps.STEPS,')
    _smaller(file, "batch_norm(eps=0.1)", "batch_norm(eps=own_steps.Rate(0.1))")
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
    line = next(i for i, text in enumerate(Path("bad_one.py").read_text().splitlines(), 1) if "no\\nluck" in text)
    failed = f"running arm 'small' of bad-one raised ValueError: no luck (bad_one.py:{line})"
    assert document["failed"] == {"bad-one": failed}
    assert document["seconds"]["good-one"] > 0
    told = run("study", "run", "bad_one.py", "good_one.py", "--seeds", 2, "--workers", 1, code=1).stderr
    assert f"1 of 2: bad-one: failed: {failed}" in told
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
        (("--out", "a_file/runs"), "lies below, a file"),
    ],
)
def test_what_is_wrong_for_all_studies_is_said_once_and_before_anything_runs(run, words, said):
    Path("a_file").write_text("")
    for command in (("study", "run", "--all"), ("study", "run", "--demo")):
        assert said in run(*command, *words, code=2)  # one line, which `run` holds it to
        assert sorted(Path().iterdir()) == [Path("a_file")]


def test_a_cell_that_changes_the_data_for_other_cells_is_refused(run, plant):
    """Whatever the number of workers; the data are as before afterwards."""
    from normscope.studies.lab.data import load

    before = load("digits").fingerprint()
    changing = (
        "def run_cells(self, cells, data, device):\n        data.x_train[0] += 1\n"
        "        return super().run_cells(cells, data, device)\n\n    def contrasts("
    )
    file, _ = plant(f"yield Contrast({STEPS})", "def contrasts(", changing)
    for workers in (1, 2):
        message = run("study", "run", file, "--seeds", 2, "--out", "runs", "--workers", workers, code=2)
        assert "changed its data in place, which other cells read too: change a copy" in message
    assert load("digits").fingerprint() == before
