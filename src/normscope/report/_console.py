"""Verdicts for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from normscope.plots import effect_words, margin_words, outcome_icon
from normscope.records import Outcome, Verdict

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {
    Outcome.HOLDS: "bold green",
    Outcome.OPPOSITE: "bold red",
    Outcome.NO_EFFECT: "bold blue",
    Outcome.UNCLEAR: "bold yellow",
    Outcome.NOT_MEASURABLE: "dim",
    Outcome.EXACT: "bold green",
    Outcome.FALSE: "bold red",
}


def console(verdicts: Sequence[Verdict], *, reasons: bool = False) -> "Table":
    """Return a table of verdicts that rich prints, also into a pipe and at 80 columns.

    Args:
        verdicts: The primary verdicts.
        reasons: Whether a line under each claim says why.

    Returns:
        Claim, verdict, effect with interval, margin and seeds. Nothing of a verdict's text is read as markup.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, show_lines=False)
    table.add_column("Claim", ratio=1, min_width=20, overflow="fold")
    table.add_column("Verdict", no_wrap=True)
    table.add_column("Effect (interval)", min_width=13, max_width=24)
    table.add_column("Margin", no_wrap=True, justify="right")
    table.add_column("n", no_wrap=True, justify="right")
    for index, verdict in enumerate(verdicts):
        claim = Text(verdict.claim)
        claim.append(f"\n{verdict.study}", style="dim")
        if reasons:
            claim.append(f"\n{verdict.reason}", style="italic")
        table.add_row(
            claim,
            Text(f"{outcome_icon(verdict.outcome)} {verdict.outcome.value}", style=_STYLES[verdict.outcome]),
            Text(effect_words(verdict.effect, margin=verdict.margin)),
            Text(margin_words(verdict.margin, verdict.effect.scale)),
            Text(str(verdict.effect.n)),
            end_section=index < len(verdicts) - 1,
        )
    return table
