"""``normscope check``."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normscope import __version__
from normscope._errors import UsageError, printable
from normscope.cli._print import print_json, print_page, print_text
from normscope.cli._progress import interruptible, status_line
from normscope.cli._words import MOST_BATCHES, Codes, codes, path as users_path, path_option
from normscope.cli.completion import complete_codes

if TYPE_CHECKING:
    from normscope.checking.settings import Settings
    from normscope.report import Checked


class Format(StrEnum):
    """The format of the output."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    GITHUB = "github"


class Level(StrEnum):
    """Lowest severity that makes the command exit with 1."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


def check(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE_OR_MODULE:FACTORY",
            help="A function without arguments that returns an ns.Case, a tuple or dict of its arguments, or a module.",
        ),
    ] = None,
    select: Annotated[
        Codes,
        typer.Option(
            help="Only rules whose codes begin so: NS1, NS102,NS105. May be repeated.", autocompletion=complete_codes
        ),
    ] = None,
    ignore: Annotated[
        Codes,
        typer.Option(help="Not the rules whose codes begin so. May be repeated.", autocompletion=complete_codes),
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Apply safe fixes, then check again.")] = False,
    unsafe_fixes: Annotated[
        bool, typer.Option("--unsafe-fixes", help="Apply all fixes, also those that change results; then check again.")
    ] = False,
    out: Annotated[
        Path | None,
        path_option("--out", help="After fixes write the state dict here: .safetensors or .pt."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Format of the output.")] = Format.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    explain: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="Print a rule's page and stop.", autocompletion=complete_codes),
    ] = None,
    state_dict: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=users_path,
            help="Check a checkpoint alone, by the rules that read buffers. Runs no code of it.",
        ),
    ] = None,
    batches: Annotated[
        int, typer.Option(min=1, max=MOST_BATCHES, help="Training batches over which statistics are taken.")
    ] = 10,
    level: Annotated[
        Level | None, typer.Option(help="Lowest severity that makes the exit code 1.  [default: error]")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Give up a rule that waits longer for a measurement, and a longer fix."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", parser=users_path, help="Read the settings from this TOML file instead."
        ),
    ] = None,
    no_config: Annotated[bool, typer.Option("--no-config", help="Read no settings.")] = False,
) -> None:
    """Look for defects of normalization in a model and how it is trained; prove them with numbers, and repair them.

    A few training steps are made and undone. Exit code 0: nothing at or above the level; 1: findings; 2: misuse, or a
    rule that could not be judged.

    Settings: the table [tool.normscope] of the nearest pyproject.toml, from the file's folder upward: select, ignore
    (a list, or a table of code and reason), level, per-path-ignores (a pattern of modules' paths, then code and
    reason). Options win over it; reasons stay in force.
    """
    form = Format.JSON if as_json else form
    if explain is not None:
        _explain(explain, as_json=form is not Format.TEXT)
        return
    if (target is None) == (state_dict is None):
        raise UsageError("give either FILE_OR_MODULE:FACTORY, such as train.py:make_case, or --state-dict FILE")
    fixing = fix or unsafe_fixes
    if out is not None and not fixing:
        raise UsageError("--out is for what fixes change: give --fix or --unsafe-fixes with it")
    if state_dict is not None and fixing:
        raise UsageError("fixes need the model and its data: give FILE_OR_MODULE:FACTORY instead of --state-dict")
    if config is not None and no_config:
        raise UsageError("--config and --no-config exclude each other")
    from normscope.checking import run
    from normscope.usercode import quiet_stdout

    settings = run.Settings() if no_config else _settings(target, config)
    # Rules that are asked for by name run, also where the file ignores them.
    given = select is not None
    chosen = run.Options(
        select=codes(select) if given else settings.select,
        ignore=codes(ignore) if given or ignore is not None else settings.ignore,
        fix=fixing,
        unsafe=unsafe_fixes,
        out=None if out is None else out.absolute(),
        batches=batches,
        timeout=timeout,
        settings=settings,
    )
    with interruptible("nothing was changed"), quiet_stdout(), status_line(form is not Format.TEXT) as show:
        if state_dict is not None:
            checked = run.check_file(state_dict, chosen)
        else:
            checked = run.check_target(target or "", chosen, show)
    print_text(_formatted(checked, form))
    raise typer.Exit(_exit_code(checked, level.value if level is not None else settings.level or Level.ERROR.value))


def _settings(target: str | None, config: Path | None) -> "Settings":
    from normscope.checking.settings import settings_for, settings_in

    if config is not None:
        return settings_in(config)
    name = (target or "").rpartition(":")[0]
    file = users_path(name) if name else Path.cwd()
    return settings_for((file if file.is_file() else Path.cwd() / "_").resolve().parent)


def _exit_code(checked: "Checked", level: str) -> int:
    from normscope.records import Severity

    most = Severity(level).rank
    if any(finding.severity.rank <= most for finding in checked.findings):
        return 1
    if checked.failed:
        failed = ", ".join(code for code, _ in checked.failed)
        typer.echo(f"normscope: {failed} could not be judged; the output says why", err=True)
        return 2
    return 0


def _formatted(checked: "Checked", form: Format) -> str:
    from normscope import report

    if form is Format.JSON:
        return report.check_json(checked)
    if form is Format.SARIF:
        return report.check_sarif(checked, version=__version__)
    if form is Format.GITHUB:
        return printable(report.check_github(checked))
    from rich.console import Console

    terminal = Console()
    color = terminal.is_terminal and terminal.color_system is not None and not terminal.no_color
    return report.check_text(checked, width=terminal.width if terminal.is_terminal else 100, color=color)


def _explain(code: str, as_json: bool) -> None:
    from normscope import rules

    rule = rules.get(code.upper() if code[:2].lower() == "ns" else code)
    fix = ("safe" if rule.SAFE else "unsafe") if rule.fixable() else "none"
    if as_json:
        facts = {"code": rule.CODE, "slug": rule.SLUG, "severity": rule.SEVERITY, "fix": fix, "title": rule.title()}
        print_json(facts | {"page": rule.page(), "sources": rule.SOURCES})
        return
    fix = "no mechanical fix" if fix == "none" else f"{fix} fix"
    print_page((f"{rule.CODE} {rule.SLUG} ({rule.SEVERITY.value}, {fix})", rule.title()), rule)
