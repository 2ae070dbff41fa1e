"""Findings for code review on GitHub: workflow commands, which a run of Actions shows as annotations at the code."""

import os
from pathlib import Path

from normscope.records import Finding, Severity
from normscope.report.check.checked import Checked, kept, loss_words, shortened, summary

_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def check_github(checked: Checked) -> str:
    """Return the result of a check as workflow commands of GitHub Actions.

    Args:
        checked: The result.

    Returns:
        A line ``::error file=...,line=...,title=...::...`` for each finding, and for each rule that could not be
        judged; then lines for the log: fixes, ignored findings, notes and counts. The file is the one in which the
        set-up is made, relative to the workspace; where it is not known it is left out.
    """
    lines = [
        _command(_LEVELS[finding.severity], checked, _title(finding), _message(finding)) for finding in checked.findings
    ]
    for code, why in checked.failed:
        lines.append(_command("error", checked, f"{code} could not be judged", why))
    for fixed in checked.fixes:
        where = f"{_title(fixed.finding)} at {shortened(fixed.finding.places)}"
        told = f"fixed {where}: {fixed.done} ({kept(fixed)})" if fixed.done else f"not fixed {where}: {fixed.why_not}"
        lines.append(_logged(told + (f"; loss {loss_words(fixed.losses)}" if fixed.losses else "")))
    lines += [_logged(f"saved {path}") for path in checked.saved]
    for finding, reason in checked.ignored:
        lines.append(_logged(f"ignored {_title(finding)} at {shortened(finding.places)}: {reason}"))
    lines += [_logged(f"note: {note}") for note in checked.notes]
    return "\n".join([*lines, _logged(summary(checked))]) + "\n"


def _title(finding: Finding) -> str:
    return f"{finding.code} {finding.slug}"


def _message(finding: Finding) -> str:
    lines = [f"{finding.message} (at {shortened(finding.places)})"]
    if finding.measured is not None:
        bound = "" if finding.bound is None else f" (bound: {finding.bound:.4g})"
        lines.append(f"measured {finding.quantity or 'value'}: {finding.measured:.4g}{bound}")
    return "\n".join(
        lines + [f"{word}: {text}" for word, text in (("costs", finding.cost), ("fix", finding.fix)) if text]
    )


def _command(level: str, checked: Checked, title: str, message: str) -> str:
    properties = {}
    if checked.file:
        properties["file"] = _path(checked.file)
        if checked.line > 0:
            properties["line"] = str(checked.line)
    properties["title"] = title
    told = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties.items())
    return f"::{level} {told}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    """Return a text as workflow commands spell it: the per cent sign first, as the others are spelled with it."""
    for letter in "%\r\n" + more:
        text = text.replace(letter, f"%{ord(letter):02X}")
    return text


def _logged(text: str) -> str:
    """Return a text as a line of the log that is no command: one can stand at the start, or anywhere as ``##[``."""
    return " ".join(text.split()).replace("##[", "# #[")


def _path(file: str) -> str:
    """Return a path relative to the workspace, else to where the command was given; absolute if it lies outside."""
    path = Path(file).resolve()
    for folder in (os.environ.get("GITHUB_WORKSPACE"), Path.cwd()):
        if folder and path.is_relative_to(Path(folder).resolve()):
            return path.relative_to(Path(folder).resolve()).as_posix()
    return path.as_posix()
