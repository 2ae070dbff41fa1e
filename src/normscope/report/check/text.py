"""Findings for a reader at a terminal, as a compiler would say them."""

import io
import math
from typing import TYPE_CHECKING, Any

from normscope._unit import web_page
from normscope.records import Finding, Severity
from normscope.report.check.checked import Checked, GapNote, kept, loss_words, shortened, summary

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold cyan"}
_LABEL = 10


def check_text(checked: Checked, *, width: int = 100, color: bool = False) -> str:
    """Return the result of a check as text.

    Args:
        checked: The result.
        width: Columns of the terminal.
        color: Whether the terminal shows colors.

    Returns:
        Lines: each finding with its layers, its number and bound, its cost and its fix; then the parts of the gap
        between training and evaluation, fixes, findings that are ignored on purpose, and a line of counts.
    """
    from rich.console import Console

    out = io.StringIO()
    system: Any = "standard" if color else None
    console = Console(
        file=out,
        width=max(width, 40),
        force_terminal=color,
        color_system=system,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        _environ={},
    )
    if checked.fixes:
        _fixes(console, checked)
    for finding in checked.findings:
        _finding(console, finding)
    if checked.gap is not None:
        _gap(console, checked.gap)
    reasons: dict[str, list[str]] = {}
    for code, why in checked.failed:
        reasons.setdefault(why, []).append(code)
    for why, codes in reasons.items():
        _line(console, "not judged", f"{', '.join(codes)}: {why}", style="bold red")
    for finding, reason in checked.ignored:
        _line(
            console, "ignored", f"{finding.code} {finding.slug} at {shortened(finding.places)}: {reason}", style="dim"
        )
    for note in checked.notes:
        _line(console, "note", note, style="bold")
    if checked.failed or checked.ignored or checked.notes:
        console.print()
    console.print(summary(checked), soft_wrap=True)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _finding(console: "Console", finding: Finding) -> None:
    from rich.text import Text

    head = Text()
    head.append(finding.severity.value, style=_STYLES[finding.severity])
    head.append(f"[{finding.code}] ", style=_STYLES[finding.severity])
    head.append(f"{finding.slug}: ", style="bold")
    head.append(finding.message)
    _hanging(console, head, 2)
    _line(console, "at", shortened(finding.places), style="cyan")
    if finding.measured is not None:
        bound = "" if finding.bound is None else f" (bound: {_number(finding.bound)})"
        _line(console, "measured", f"{finding.quantity or 'value'}: {_number(finding.measured)}{bound}")
    if finding.cost:
        _line(console, "costs", finding.cost)
    if finding.fix:
        _line(console, "fix", f"{finding.fix} [{_applied(finding)}]", style="green")
    addresses = filter(None, [f"normscope check --explain {finding.code}", web_page("rules", finding.code)])
    _line(console, "read", " or ".join(addresses), style="dim")
    console.print()


def _applied(finding: Finding) -> str:
    if not finding.fixable:
        return "by hand"
    if finding.safe:
        return "safe: --fix applies it"
    return "unsafe, changes what the network computes or learns: --unsafe-fixes applies it"


def _gap(console: "Console", gap: GapNote) -> None:
    from rich.table import Table
    from rich.text import Text

    rise = gap.eval - gap.train
    console.print(
        f"The loss is {gap.train:.4g} in training and {gap.eval:.4g} in evaluation"
        + (f" ({rise:+.4g})" if math.isfinite(rise) else "")
        + (", which comes from:" if gap.shares else ".")
    )
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(min_width=14)
    table.add_column(ratio=1, style="dim")
    for cause, loss, explanation, error in gap.rows():
        noise = f" ± {error:.2g}" if error else ""
        table.add_row(f"  {loss:+.4g}{noise}", Text(cause), Text(explanation))
    console.print(table)
    console.print()


def _fixes(console: "Console", checked: Checked) -> None:
    for fixed in checked.fixes:
        where = f"{fixed.finding.code} {fixed.finding.slug} at {shortened(fixed.finding.places)}"
        if fixed.done:
            _line(console, "fixed", f"{where}: {fixed.done} ({kept(fixed)})", style="bold green")
        else:
            _line(console, "not fixed", f"{where}: {fixed.why_not}", style="bold yellow")
        if fixed.losses:
            _line(console, "loss", loss_words(fixed.losses), style="dim")
    for path in checked.saved:
        _line(console, "saved", path, style="bold green")
    console.print()


def _line(console: "Console", label: str, text: str, *, style: str = "") -> None:
    from rich.text import Text

    line = Text()
    line.append(f"  {label:<{_LABEL}} ", style=style)
    line.append(text)
    _hanging(console, line, _LABEL + 3)


def _hanging(console: "Console", text: Any, indent: int) -> None:
    """Print with the lines after the first moved in. Control characters of a name are shown, not obeyed."""
    from rich.text import Text

    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.plain)
    if plain != text.plain:
        text = Text(plain)
    lines = text.wrap(console, console.width)
    if len(lines) > 1:
        first = lines[0]
        rest = text[len(first.plain) :]
        rest = rest[len(rest.plain) - len(rest.plain.lstrip()) :]
        console.print(first, soft_wrap=True)
        for line in rest.wrap(console, console.width - indent):
            console.print(Text(" " * indent).append_text(line), soft_wrap=True)
        return
    console.print(text, soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:.4g}"
