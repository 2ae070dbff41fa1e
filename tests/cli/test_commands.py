"""Every command that there is, found in the command line itself: help, examples, misuse, JSON, files."""

import inspect
import json
import os
import shlex
import stat
import subprocess
import sys
import types
import typing
from enum import Enum
from pathlib import Path

import pytest
import torch
import typer.main
import typer.models
from torch import nn

import normscope
from normscope import cli, explain as explain_module
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
HEAVY = ("torch", "polars", "duckdb", "altair", "scipy", "sklearn", "numpy", "rich.progress")


def leaves(app, words=()):
    """Yield (words, function) for every command below a group."""
    for info in app.registered_commands:
        yield (*words, info.name or info.callback.__name__), info.callback
    for group in app.registered_groups:
        yield from leaves(group.typer_instance, (*words, group.name))


def options(function):
    """Yield (name, kind, what typer was told) for every option and argument."""
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        if name != "return":
            kind, *told = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint, None)
            yield name, kind, told[0]


def option(name, told):
    """Return the long name; within Annotated, typer keeps the first name that it is given as the default."""
    names = [word for word in (told.default, *(told.param_decls or ())) if isinstance(word, str)]
    return next((word for word in names if word.startswith("--")), "--" + name.replace("_", "-"))


FUNCTIONS = dict(leaves(cli.app))
GROUPS = [(), *dict.fromkeys(words[:-1] for words in FUNCTIONS if len(words) > 1)]
OPTIONS = [
    (words, option(name, told), kind, told)
    for words, function in FUNCTIONS.items()
    for name, kind, told in options(function)
    if isinstance(told, typer.models.OptionInfo) and kind is not bool
]


def parser(words):
    found = typer.main.get_command(cli.app)
    for word in words:
        found = found.commands[word]
    return found


def named(words):
    return " ".join(words) or "normscope"


every_command = pytest.mark.parametrize("words", FUNCTIONS, ids=named)


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


# -- misuse


@every_command
def test_an_option_that_there_is_not_is_one_line(refuse, words):
    said = refuse(*words, "--nothing-like-it")
    assert f"See `normscope {named(words)} --help`" in said


@pytest.mark.parametrize("words", GROUPS, ids=named)
def test_a_command_that_there_is_not_is_one_line(refuse, words):
    assert "--help" in refuse(*words, "nothing-like-it")


@every_command
def test_words_too_many_are_one_line(refuse, words):
    arguments = [kind for _, kind, told in options(FUNCTIONS[words]) if not isinstance(told, typer.models.OptionInfo)]
    if any("list" in str(kind) for kind in arguments):  # as many as one likes
        said = {("compare",): "name each, such as", ("explain",): "no study, probe"}.get(words, "no study is called")
        assert said in refuse(*words, "nothing-like-it", "nor-this")
        return
    assert "--help" in refuse(*words, *(["word"] * (len(arguments) + 1)))


@every_command
def test_a_word_that_is_needed_and_missing_is_one_line(refuse, words):
    defaults = inspect.signature(FUNCTIONS[words]).parameters.values()
    if any(parameter.default is parameter.empty for parameter in defaults):
        assert "--help" in refuse(*words)


@pytest.mark.parametrize(("words", "word", "kind", "told"), OPTIONS, ids=[f"{named(o[0])} {o[1]}" for o in OPTIONS])
def test_a_value_that_does_not_fit_is_one_line(refuse, words, word, kind, told):
    """Of every option: that its value is missing, and values that its type refuses."""
    assert "--help" in refuse(*words, word)
    bad = [bound for bound in (told.min and told.min - 1, told.max and told.max + 1, told.max and 10**9) if bound]
    bad += ["x", "1.5"] if kind in (int, int | None) else []
    bad += ["nothing-like-it"] if isinstance(kind, type) and issubclass(kind, Enum) else []
    for value in bad:
        said = refuse(*words, word, value)
        assert "--help" in said
        assert word in said


NO_SUCH = {
    ("compare",): [(), ("missing.py:make",), ("a.py:make", "b.py:make"), ("a=a.py:make", "a=b.py:make"),
                   ("missing.py:make", "--rates", "x"), ("missing.py:make", "--export", "docx")],
    ("report",): [("missing",), (".",), ("a_file", "--markdown", "x.md"), ("a_file", "--page", "x.html"),
                  (".", "--study", "missing.py")],
    ("explain",): [("nothing-like-it",), ("missing.py",), ("probe:nothing",)],
    ("check",): [(), ("missing.py:make",), ("missing:make",), ("--state-dict", "missing.pt"), ("--explain", "NS999")],
    ("study", "show"): [("nothing-like-it",), ("missing.py",)],
    ("study", "run"): [(), ("nothing-like-it",), ("noisy-batchnorm", "--all"), ("noisy-batchnorm", "--preset", "slow"),
                       ("noisy-batchnorm", "--data", "missing"), ("noisy-batchnorm", "--device", "abacus")],
    ("study", "new"): [("claim.txt",), ("missing/claim.py",), ("a_file/claim.py",)],
    ("bench", "probes"): [("--model", "gpt"), ("--case", "nothing")],
    ("bench", "layers"): [("--only", "(3, 3, 3)"), ("--allocator", "jemalloc"), ("--device", "abacus")],
    ("bench", "check"): [("--select", "NS999")],
}  # fmt: skip


@pytest.mark.parametrize(("words", "more"), [(words, more) for words, listed in NO_SUCH.items() for more in listed])
def test_what_there_is_not_is_one_line_and_writes_nothing(refuse, tmp_path, monkeypatch, words, more):
    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("no run", encoding="utf-8")
    refuse(*words, *more)
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


@pytest.mark.parametrize(("words", "word", "kind", "told"), OPTIONS, ids=[f"{named(o[0])} {o[1]}" for o in OPTIONS])
def test_a_number_of_things_has_bounds(words, word, kind, told):
    """A count that is wrong by a few digits is refused, not begun."""
    if kind in (int, int | None):
        assert told.max is not None
        assert told.max <= 10_000_000


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


@pytest.mark.parametrize("where", ["s3://", "gs:///", "ftp://host/runs", "", "a\0b", "n" * 300])
def test_a_place_that_is_none_is_refused_by_every_option_that_names_a_file(refuse, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    for words, word, kind, _ in OPTIONS:
        if "Path" in str(kind):
            refuse(*words, word, where)
    assert not list(tmp_path.iterdir())


def test_names_that_a_terminal_would_obey_are_shown(run, refuse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (
        ("report", "\x1b[31mred"),
        ("explain", "\x1b[31mred"),
        ("check", "\x1b[31mred.py:make"),
        ("\x1b[31mred",),
        ("check", "--format", "\x1b[31mred"),
        ("study", "new", "\x1b[31mred"),
    ):
        said = refuse(*words)
        assert "\\x1b[31mred" in said
        assert said.isprintable()
    assert "red\\x1b[0m.py" in run("study", "new", "red\x1b[0m.py").stdout


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("class Stop(BaseException): ...\nraise Stop", "raised Stop (mine.py:2)"),
        ("import sys\nsys.exit(0)", "raised SystemExit: 0 (mine.py:2)"),
        ("def __getattr__(name):\n    return 1 / 0", "(mine.py:2)"),
        ("def make():\n    raise GeneratorExit", "GeneratorExit (mine.py:2)"),
    ],
)
def test_whatever_a_file_raises_is_a_line_of_the_users(refuse, tmp_path, monkeypatch, code, said):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(code + "\n", encoding="utf-8")
    assert said in refuse("check", "mine.py:make", "--select", "NS103")


def plant_in_explain(monkeypatch, error):
    """Have ``explain`` raise an error out of no file of the user's."""
    broken = compile("lambda name: (_ for _ in ()).throw(error)", "<planted>", "eval")
    monkeypatch.setattr(explain_module, "unit", eval(broken, {"error": error}))


def test_a_fault_of_the_program_is_a_line_that_asks_for_a_report_and_a_traceback_if_asked(refuse, monkeypatch):
    plant_in_explain(monkeypatch, KeyError("gone"))
    said = refuse("explain", "NS101")
    assert "a fault of normscope's own: KeyError: 'gone'" in said
    assert "NORMSCOPE_TRACEBACK=1" in said
    monkeypatch.setenv("NORMSCOPE_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli.main(["explain", "NS101"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "too little memory"),
        (PermissionError(13, "Permission denied", "a/b"), "cannot use a/b: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_the_machine_refuses_is_a_line(refuse, monkeypatch, error, said):
    plant_in_explain(monkeypatch, error)
    assert said in refuse("explain", "NS101")


# -- what works


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a set-up to check, a study of the user's own that is over soon, and its run."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "setup.py").write_text(SETUP, encoding="utf-8")
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
        ("rules",): (),
        ("probes",): (),
        ("layers",): (),
        ("report",): ("run", "--study", "my_claim.py"),
        ("explain",): ("noisy-batchnorm",),
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


def with_option(word):
    return [
        words
        for words, function in FUNCTIONS.items()
        if any(told is not None and option(name, told) == word for name, _, told in options(function))
    ]


@pytest.mark.parametrize("words", with_option("--json"), ids=named)
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
