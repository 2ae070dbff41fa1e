"""Annotations of GitHub Actions: the commands, the spelling of what would end them, and lines of the log."""

import re

import pytest

from normscope.records import Finding, Severity
from normscope.report import Checked, FixNote, LossNote, RuleNote, check_github

RULE = RuleNote("NS102", "train-eval-gap", "A gap.", Severity.ERROR)


def finding(message="bad", **options):
    return Finding("NS102", "train-eval-gap", Severity.ERROR, message, **options)


def parsed(line):
    """Read a workflow command as the runner of GitHub does: cut at the first ``::``, split at commas, then unescape."""
    level, properties, message = re.fullmatch(r"::(\w+) (.*?)::(.*)", line).groups()

    def plain(text, more=()):
        for code, letter in (("%0D", "\r"), ("%0A", "\n"), *more, ("%25", "%")):
            text = text.replace(code, letter)
        return text

    pairs = (part.split("=", 1) for part in properties.split(","))
    return level, {key: plain(value, (("%3A", ":"), ("%2C", ","))) for key, value in pairs}, plain(message)


def test_a_finding_is_a_command_with_its_numbers():
    found = finding(places=("a.1", ""), quantity="gap", measured=2.5, bound=0.1, cost="2.4 of loss", fix="recalibrate")
    lines = check_github(Checked("train.py:make", [found], rules=[RULE], seconds=2)).splitlines()
    assert lines == [
        "::error title=NS102 train-eval-gap::bad (at a.1, the whole model)%0Ameasured gap: 2.5 (bound: 0.1)"
        "%0Acosts: 2.4 of loss%0Afix: recalibrate",
        "1 error: 1 rule looked at train.py:make in 2.0 s",
    ]


@pytest.mark.parametrize(("severity", "level"), [*zip(Severity, ("error", "warning", "notice"), strict=True)])
def test_each_severity_is_a_level(severity, level):
    found = Finding("NS1", "x", severity, "bad")
    assert parsed(check_github(Checked("t", [found])).splitlines()[0])[0] == level


@pytest.mark.parametrize(
    "odd", ["50%", "%0A", "%25", "a\nb", "a\r\nb", "a::b", "a,b=c", "::error::x", "ä→", "%3A:%2C,"]
)
def test_what_would_end_a_command_is_spelled(odd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    name = odd.replace("\n", " ").replace("\r", " ") + ".py"
    slug = f"slug {odd}"
    found = Finding("NS1", slug, Severity.ERROR, odd, places=("",))
    text = check_github(Checked("t", [found], file=str(tmp_path / name), line=7))
    assert text.count("\n") == 2
    level, properties, message = parsed(text.splitlines()[0])
    assert level == "error"
    assert properties == {"file": name, "line": "7", "title": f"NS1 {slug}"}
    assert message == f"{odd} (at the whole model)"


@pytest.mark.parametrize(("file", "line", "keys"), [("", 0, set()), ("", 5, set()), ("a.py", 0, {"file"})])
def test_what_is_not_known_is_left_out(file, line, keys):
    properties = parsed(check_github(Checked("t", [finding()], file=file, line=line)).splitlines()[0])[1]
    assert properties.keys() == keys | {"title"}


def test_a_file_is_named_from_the_workspace(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    checked = Checked("t", [finding()], file="train.py")

    def file():
        return parsed(check_github(checked).splitlines()[0])[1]["file"]

    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert file() == "below/train.py"
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path / "other"))
    assert file() == "train.py"
    checked = Checked("t", [finding()], file=str(tmp_path / "train.py"))
    assert file() == (tmp_path / "train.py").as_posix()


def test_what_could_not_be_judged_is_an_error_and_the_rest_is_the_log():
    checked = Checked(
        "t",
        ignored=[(finding(), "on purpose\nindeed")],
        failed=[("NS103", "raised: x")],
        fixes=[
            FixNote(finding(), "recalibrated", tensors=3, losses=(LossNote("evaluation", 2.5, 0.5),)),
            FixNote(finding(places=("a",)), why_not="unsafe"),
        ],
        saved=["x.pt: the state dict"],
        notes=["::error::no command", "##[error]nor this"],
    )
    lines = check_github(checked).splitlines()
    assert parsed(lines[0]) == ("error", {"title": "NS103 could not be judged"}, "raised: x")
    assert lines[1:-1] == [
        "fixed NS102 train-eval-gap at the whole model: recalibrated (changed 3 tensors of the state dict); "
        "loss of evaluation 2.5 before, 0.5 after",
        "not fixed NS102 train-eval-gap at a: unsafe",
        "saved x.pt: the state dict",
        "ignored NS102 train-eval-gap at the whole model: on purpose indeed",
        "note: ::error::no command",
        "note: # #[error]nor this",
    ]
