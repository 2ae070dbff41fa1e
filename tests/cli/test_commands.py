"""Every command that there is, found in the command line itself: help, examples, misuse, JSON, files."""

import json
import os
import shlex
import stat
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import normscope
from kit.command_tree import FUNCTIONS, GROUPS, OPTIONS, long_name, named, options, parser
from normscope.bench import layers as bench_layers, probes as bench_probes
from normscope.cli import demo

SETUP = """
import torch
import normscope as ns

def make():
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    data = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(2)]
    return ns.Case(model, lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]), data)

def make_case():
    case = make()
    return ns.Case(case.model, case.loss_fn, case.loader, torch.optim.SGD(case.model.parameters(), 0.1), case.loader)
"""
FORMULA = """
import numpy as np

inputs = np.arange(3.0)

def forward(x):
    return x**2

def backward(g, x):
    return 2 * g * x
"""
HEAVY = ("torch", "polars", "duckdb", "altair", "scipy", "sklearn", "numpy", "rich.progress")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["demo", "--help"], ["study", "run", "--help"], []])
def test_help_imports_nothing_heavy(words):
    probe = (
        "import sys; from normscope.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert out.rstrip().endswith("heavy: []")


def test_the_commands_are_all_found():
    assert {("demo",), ("check",), ("report",), ("explain",), ("study", "run"), ("bench", "check")} <= set(FUNCTIONS)
    assert all(words[-1] in parser(words[:-1]).commands for words in FUNCTIONS)
    for words, word, _, _ in OPTIONS:
        assert any(word in parameter.opts for parameter in parser(words).params), (words, word)
    assert len(with_option("--json")) >= 11
    assert len(with_option("--out")) >= 6


@pytest.mark.parametrize("words", [*GROUPS, *FUNCTIONS], ids=named)
def test_help_has_an_example_that_the_parser_takes(run, words):
    epilog = parser(words).epilog
    assert " ".join(epilog.split()) in " ".join(run(*words, "--help").stdout.split())
    assert parser(words).help
    label, _, examples = epilog.partition(":  ")
    assert label == ("Example" if words else "Start with")
    for example in examples.split(" && "):
        program, *given = shlex.split(example.partition(" > ")[0])
        assert program == "normscope"
        own = next(known for known in FUNCTIONS if tuple(given[: len(known)]) == known)
        parser(own).make_context(named(own), given[len(own) :])  # raises if it does not fit
    assert tuple(shlex.split(examples)[1 : len(words) + 1]) == words


@pytest.mark.parametrize("words", [words for words in GROUPS if words], ids=named)
def test_a_group_alone_answers_with_its_help(run, words):
    assert "Commands:" in run(*words, code=2).stderr


def test_the_program_alone_shows_what_to_do_above_the_list_of_commands(run):
    text = run().stdout
    above, _, listed = text.partition("Commands:")
    assert all(f"\n  {words[0]}" in listed for words in FUNCTIONS)
    told = [line.split() for line in above.splitlines() if line.startswith("      normscope")]
    assert [words[1] for words in told] == ["compare", "check", "watch", "study"]
    for _, *given in told:
        own = next(known for known in FUNCTIONS if tuple(given[: len(known)]) == known)
        parser(own).make_context(named(own), given[len(own) :])  # raises if it does not fit
    assert len(above[: above.index("Usage:")].splitlines()) <= 20


def test_version(run):
    assert run("--version").stdout == f"normscope {normscope.__version__}\n"


# -- what works


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a set-up to check, a study of the user's own that is over soon, and its run."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "setup.py").write_text(SETUP, encoding="utf-8")
    (folder / "right.py").write_text(FORMULA, encoding="utf-8")
    claim = folder / "my_claim.py"
    normscope.studies.new(claim)
    text = claim.read_text(encoding="utf-8")
    assert '"steps": 100' in text
    claim.write_text(text.replace('"steps": 100', '"steps": 3'), encoding="utf-8")
    normscope.studies.run(normscope.study(str(claim)), out=folder / "run", seeds=2, workers=1)
    return folder


@pytest.fixture
def works(small, monkeypatch):
    """Words with which each command ends soon."""
    tiny = bench_probes.Model(lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 10)), (8, 6), "x")
    monkeypatch.setitem(bench_probes.measure.__kwdefaults__, "models", {"tiny": tiny})
    monkeypatch.setattr(bench_layers, "SHAPES", ((8, 4),))
    monkeypatch.setattr(
        bench_layers, "measure_apart", lambda job: bench_layers.measure_shape(job["shape"], job["allocator"])
    )
    rounds = bench_layers.rounds
    monkeypatch.setattr(bench_layers, "rounds", lambda acts, clock: rounds(acts, clock, 0.0))
    monkeypatch.setattr(demo, "STUDY", "my-claim")
    monkeypatch.setattr(demo, "EXAMPLE", "setup.py:make_case")
    monkeypatch.setattr(demo, "STEPS", 3)
    monkeypatch.chdir(small)
    run = ("--seeds", 2, "--workers", 1, "--out", "run")
    return {
        ("demo",): ("--seeds", 1, "--workers", 1, "--out", "demo"),
        ("compare",): (
            "setup.py:make_case",
            "--steps",
            3,
            "--questions",
            "speed,step",
            "--seeds",
            1,
            "--workers",
            1,
            "--out",
            "compared",
            "--export",
            "csv,latex",
        ),
        ("example",): (),
        ("verify",): ("right.py",),
        ("rules",): (),
        ("probes",): (),
        ("layers",): (),
        ("report",): ("run", "--study", "my_claim.py"),
        ("explain",): ("noisy-batchnorm",),
        ("atlas",): ("--page", "atlas.html"),
        ("check",): ("setup.py:make", "--select", "NS103"),
        ("study", "list"): (),
        ("study", "show"): ("noisy-batchnorm",),
        ("study", "run"): ("my_claim.py", *run),
        ("study", "calibrate"): ("--studies", 20, "--seeds", 2),
        ("bench", "probes"): ("--rounds", 1, "--case", "saturation"),
        ("bench", "layers"): ("--no-compiled", "--no-whole", "--allocator", "default"),
        ("bench", "check"): ("--select", "NS103"),
    }


def test_the_permissions_of_what_is_written_follow_the_umask(small):
    umask = os.umask(0o077)
    os.umask(umask)
    written = list((small / "run").rglob("*"))
    assert len(written) >= 5
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path


@pytest.mark.parametrize("where", ["~", "~/below", "~nobody-of-that-name"])
def test_a_home_folder_is_expanded_where_a_file_is_named(run, refuse, works, tmp_path, monkeypatch, where):
    """A shell leaves it as it is behind an equals sign."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    words = ("check", "setup.py:make", "--select", "NS103", f"--config={where}/settings.toml")
    if where == "~nobody-of-that-name":
        assert "no such user" in refuse(*words)
        return
    (tmp_path / "home" / "below").mkdir()
    (tmp_path / "home" / where[2:] / "settings.toml").write_text("level = 'info'\n", encoding="utf-8")
    run(*words)
    assert not Path("~").exists()


def with_option(word):
    return [
        words
        for words, function in FUNCTIONS.items()
        if any(told is not None and long_name(name, told) == word for name, _, told in options(function))
    ]


LONG = (("demo",), ("atlas",))
JSON = [pytest.param(words, marks=pytest.mark.long if words in LONG else ()) for words in with_option("--json")]


@pytest.mark.parametrize("words", JSON, ids=named)
def test_json_is_one_strict_document_and_nothing_beside_it(run, works, words):
    done = run(*words, *works[words], "--json")
    json.loads(done.stdout, parse_constant=pytest.fail)
    assert done.stderr == ""  # no progress in a pipe
    plain = run(*words, *works[words]).stdout
    assert plain.strip()
    assert not plain.startswith("{")


@pytest.mark.parametrize("words", [w for w in with_option("--out") if w != ("check",)], ids=named)
def test_an_out_that_cannot_be_written_is_one_line(refuse, works, small, words):
    """Below a file nobody can write, not even root."""
    given = list(works[words])
    if "--out" in given:
        del given[given.index("--out") : given.index("--out") + 2]
    assert "setup.py" in refuse(*words, *given, "--out", small / "setup.py" / "out")
    assert (small / "setup.py").is_file()


@pytest.mark.parametrize("words", [w for w in with_option("--out") if w[0] == "bench"], ids=named)
def test_tables_are_written_where_out_says(run, works, tmp_path, words):
    page = tmp_path / "deep" / "page.md"
    done = run(*words, *works[words], "--out", page)
    assert f"Written to {page}" in done.stdout.replace("\n", "")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "| --- |" in text


def test_interrupt_ends_in_one_line(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    judging = types.ModuleType("normscope.verdicts")
    judging.run = interrupted
    monkeypatch.setitem(sys.modules, "normscope.verdicts", judging)
    monkeypatch.setattr(normscope, "verdicts", judging, raising=False)
    monkeypatch.setattr(normscope.comparing, "compare", interrupted)
    for words in (("study", "run", "noisy-batchnorm"), ("demo",), ("compare", "train.py:make_case")):
        done = run(*words, code=130)
        assert (done.stdout, done.stderr.count("\n")) == ("", 1)
        assert "same command" in done.stderr
    monkeypatch.setattr(bench_probes, "measure", interrupted)
    assert "nothing was written" in run("bench", "probes", code=130).stderr


def test_threads_are_as_they_were(run, works):
    before = torch.get_num_threads()
    run("bench", "layers", *works["bench", "layers"])
    assert torch.get_num_threads() == before
