"""The words of ``normscope check``. What is heavy is imported inside, so that help answers at once."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normscope import __version__
from normscope._errors import UsageError

if TYPE_CHECKING:
    from normscope.report import Checked


class Format(StrEnum):
    """How findings are said."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"


class Level(StrEnum):
    """From which severity on a finding makes the exit code 1."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


Codes = list[str] | None


def register(app: typer.Typer) -> None:
    """Add ``check`` to the command line, and ``bench check`` where there is a group called bench."""
    app.command("check", epilog="Example:  normscope check train.py:make_case --select NS1 --format sarif")(_command)
    for group in app.registered_groups:
        if group.name == "bench" and group.typer_instance is not None:
            example = "Example:  normscope bench check --out benchmarks/results/check.md"
            group.typer_instance.command("check", epilog=example)(_bench)


def _command(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE_OR_MODULE:FACTORY",
            help="A function without arguments that returns an ns.Case, a tuple or dict of its arguments, or a module.",
        ),
    ] = None,
    select: Annotated[
        Codes, typer.Option(help="Only rules whose codes begin so: NS1, NS102,NS105. May be repeated.")
    ] = None,
    ignore: Annotated[Codes, typer.Option(help="Not the rules whose codes begin so. May be repeated.")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Apply safe fixes, then check again.")] = False,
    unsafe_fixes: Annotated[
        bool, typer.Option("--unsafe-fixes", help="Apply all fixes, also those that change results; then check again.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="After fixes write the state dict here: .safetensors or .pt.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How findings are said.")] = Format.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    explain: Annotated[str | None, typer.Option(metavar="CODE", help="Print a rule's page and stop.")] = None,
    state_dict: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Check a checkpoint alone, by the rules that read buffers. Runs no code of it."
        ),
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="Training batches over which statistics are taken.")] = 10,
    level: Annotated[Level, typer.Option(help="From which severity on findings make the exit code 1.")] = Level.ERROR,
) -> None:
    """Look for defects of normalization in a model and how it is trained; prove them with numbers, and repair them.

    A few training steps are made and undone. Exit code 0: nothing at or above the level; 1: findings; 2: misuse.
    """
    form = Format.JSON if as_json else form
    if explain is not None:
        _explain(explain, form)
        return
    if (target is None) == (state_dict is None):
        raise UsageError("give either FILE_OR_MODULE:FACTORY, such as train.py:make_case, or --state-dict FILE")
    fixing = fix or unsafe_fixes
    if out is not None and not fixing:
        raise UsageError("--out is for what fixes change: give --fix or --unsafe-fixes with it")
    if state_dict is not None and fixing:
        raise UsageError("fixes need the model and its data: give FILE_OR_MODULE:FACTORY instead of --state-dict")
    from normscope import usercode as guard
    from normscope.checking import run

    chosen = run.Options(
        select=_codes(select),
        ignore=_codes(ignore),
        fix=fixing,
        unsafe=unsafe_fixes,
        out=None if out is None else out.absolute(),
        batches=batches,
    )
    try:
        with guard.quiet_stdout(), _progress(form) as told:
            if state_dict is not None:
                checked = run.check_file(state_dict, chosen)
            else:
                checked = run.check_target(target or "", chosen, told)
    except KeyboardInterrupt:
        typer.echo("normscope: interrupted; nothing was changed", err=True)
        raise typer.Exit(130) from None
    _say(checked, form)
    raise typer.Exit(_code(checked, level))


def _code(checked: "Checked", level: Level) -> int:
    from normscope.records import Severity

    most = Severity(level.value).rank
    if any(finding.severity.rank <= most for finding in checked.findings):
        return 1
    if checked.failed:
        codes = ", ".join(code for code, _ in checked.failed)
        typer.echo(f"normscope: {codes} could not be judged; the output says why", err=True)
        return 2
    return 0


def _say(checked: "Checked", form: Format) -> None:
    from normscope import report

    if form is Format.JSON:
        text = report.check_json(checked)
    elif form is Format.SARIF:
        text = report.check_sarif(checked, version=__version__)
    else:
        from rich.console import Console

        terminal = Console()
        color = terminal.is_terminal and terminal.color_system is not None and not terminal.no_color
        text = report.check_text(checked, width=terminal.width if terminal.is_terminal else 100, color=color)
    _print(text)


def _print(text: str) -> None:
    """Print, also where the locale has not every letter."""
    if sys.stdout is None:
        raise UsageError("there is no standard output to print to")
    encoding = sys.stdout.encoding or "utf-8"
    try:
        typer.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        with suppress(OSError, ValueError):
            sys.stdout.close()  # or what is left in its buffer fails again when the program ends
        raise UsageError(f"cannot write to standard output: {error.strerror}") from None


def _explain(code: str, form: Format) -> None:
    import json

    from normscope import rules

    rule = rules.get(code.upper() if code[:2].lower() == "ns" else code)
    page = rule.page()
    facts = {
        "code": rule.CODE,
        "slug": rule.SLUG,
        "severity": rule.SEVERITY.value,
        "fix": ("safe" if rule.SAFE else "unsafe") if rule.fixable() else "none",
        "title": rule.title(),
        "page": page,
        "sources": list(rule.SOURCES),
    }
    if form is not Format.TEXT:
        _print(json.dumps(facts, indent=2) + "\n")
        return
    fix = "no mechanical fix" if facts["fix"] == "none" else f"{facts['fix']} fix"
    lines = [f"{rule.CODE} {rule.SLUG} ({rule.SEVERITY.value}, {fix})", rule.title()]
    for heading, text in page.items():
        lines += ["", heading, "-" * len(heading), text]
    if rule.SOURCES:
        lines += ["", "Sources", "-------", *rule.SOURCES]
    _print("\n".join(lines) + "\n")


def _codes(given: Sequence[str] | None) -> list[str] | None:
    """Split at commas; codes in capitals, names as they are."""
    if not given:
        return None
    parts = [part.strip() for one in given for part in one.split(",")]
    return [part.upper() if part[:2].lower() == "ns" else part for part in parts if part]


@contextmanager
def _progress(form: Format) -> Iterator[Callable[[str], None] | None]:
    """Yield what is called with what is being done: a line that changes on a terminal, nothing in a pipe."""
    if form is not Format.TEXT or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("importing") as status:
        yield lambda what: status.update(escape(what))


def _bench(
    out: Annotated[Path | None, typer.Option("--out", help="Markdown file to write the table into.")] = None,
    select: Annotated[Codes, typer.Option(help="Only rules whose codes begin so.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")] = False,
) -> None:
    """Run every rule on set-ups with and without its defect: how much it finds, and how often it is wrong."""
    import json

    from normscope.checking import rates

    with _progress(Format.JSON if as_json else Format.TEXT) as told:
        result = rates.measure(_codes(select), progress=told)
    page = rates.markdown(result)
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(page, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {out}: {error.strerror}; choose another --out") from None
    if as_json:
        _print(json.dumps(result, indent=2) + "\n")
        return
    _print(rates.text(result))
    if out is not None:
        _print(f"Written to {out}\n")
