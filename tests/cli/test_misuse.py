"""Every command and every option, typed wrongly: one line, exit code 2, and nothing written."""

import inspect
from enum import Enum
from pathlib import Path

import pytest
import typer.models

from kit.command_tree import FUNCTIONS, GROUPS, OPTIONS, named, options
from normscope import cli, explain as explain_module

every_command = pytest.mark.parametrize("words", FUNCTIONS, ids=named)


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
        said = {
            ("atlas",): "cannot read nothing-like-it",
            ("compare",): "name each, such as",
            ("explain",): "no study, probe",
        }.get(words, "no study is called")
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
    ("verify",): [(), ("missing.py",), ("a_file",), (".",), ("a_file:make",), ("missing.py", "--example")],
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
