"""Verdicts for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from normscope._errors import printable
from normscope.records import Verdict, standing
from normscope.records.answers import capital, headline
from normscope.report._words import amount_of, is_identity, kind_of, sign_of

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {
    "holds": "bold green",
    "opposite": "bold red",
    "no effect that matters": "bold blue",
    "unclear": "bold yellow",
    "not measurable": "dim",
    "exact": "bold green",
    "false": "bold red",
    "depends": "bold magenta",
    "mixed": "bold magenta",
}


def console(verdicts: Sequence[Verdict], *, reasons: bool = False) -> "Table":
    """Return a table of verdicts that rich prints, also into a pipe and at 80 columns.

    Args:
        verdicts: The primary verdicts; identities are put after the others.
        reasons: Whether the sentence of the headline stands under each claim.

    Returns:
        Claim, answer and effect with interval; under a claim that is undecided, why it is. Nothing of a verdict's text
        is read as markup.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, show_lines=False)
    table.add_column("Claim", ratio=2, min_width=20, overflow="fold")
    table.add_column("Answer", ratio=1, min_width=14, overflow="fold")
    table.add_column("Effect (interval)", ratio=1, min_width=13, overflow="fold")
    ordered = sorted(verdicts, key=is_identity)
    for index, verdict in enumerate(ordered):
        claim = Text(printable(verdict.claim))
        claim.append(f"\n{printable(verdict.study)}", style="dim")
        if verdict.why and not reasons:
            claim.append(printable(f"\n{capital(verdict.why)}."), style="italic")
        if reasons:
            claim.append(printable(f"\n{headline(verdict)}"), style="italic")
        table.add_row(
            claim,
            Text(f"{sign_of(verdict)} {standing(verdict)}", style=_STYLES[kind_of(verdict)]),
            Text(printable(amount_of(verdict) or "–")),
            end_section=index < len(ordered) - 1,
        )
    return table
