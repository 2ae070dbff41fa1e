"""Export a comparison: figures as PDF and SVG, answers, contrasts and records as CSV, a table of answers as LaTeX."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope._errors import UsageError
from normscope.comparing.latex import booktabs
from normscope.comparing.page import Answer, ComparisonPage
from normscope.plots import Figure
from normscope.records import Verdict
from normscope.records.addresses import save
from normscope.report import amount_of, described_amount, point_and_interval

if TYPE_CHECKING:
    import polars as pl

#: What an export can be.
KINDS = ("pdf", "svg", "csv", "latex")

# Of the width of a line; the rest is the space between columns.
_COLUMNS = r"p{0.38\linewidth}p{0.16\linewidth}p{0.12\linewidth}p{0.13\linewidth}"
_HEADS = ("Question", "Effect", "Interval", "Word")


def check_kinds(kinds: str | Sequence[str]) -> list[str]:
    """Return the kinds of an export, each once.

    Raises:
        UsageError: There is no such kind, or none is named.
    """
    wanted = list(dict.fromkeys([kinds] if isinstance(kinds, str) else kinds))
    if unknown := [kind for kind in wanted if kind not in KINDS]:
        raise UsageError(f"no export of kind {unknown[0]!r}: choose among {', '.join(KINDS)}")
    if not wanted:
        raise UsageError(f"name at least one kind of export: {', '.join(KINDS)}")
    return wanted


def export(
    folder: Path, kinds: Sequence[str], page: ComparisonPage, answers: "pl.DataFrame", records: "pl.DataFrame"
) -> list[Path]:
    """Write figures, answers and records into a folder.

    Args:
        folder: Made if need be; files of other names in it are left alone.
        kinds: Of ``KINDS``, in any order: ``"pdf"`` and ``"svg"`` write every figure of the page on a white ground,
            ``"csv"`` writes ``answers.csv``, ``contrasts.csv`` and ``records.csv``, ``"latex"`` writes ``answers.tex``.
        page: What the page shows.
        answers: The answers as a frame.
        records: All records.

    Returns:
        The files written. Every file appears whole or not at all.

    Raises:
        UsageError: No such kind; nothing is written then.
        StoreError: The folder cannot be written.
    """
    wanted = check_kinds(kinds)
    makers: dict[str, Callable[[], Iterator[Path]]] = {
        "pdf": lambda: _figures(folder, "pdf", page),
        "svg": lambda: _figures(folder, "svg", page),
        "csv": lambda: _tables(folder, page, answers, records),
        "latex": lambda: iter([save(folder / "answers.tex", _latex(page))]),
    }
    return [path for kind in wanted for path in makers[kind]()]


def _figures(folder: Path, suffix: str, page: ComparisonPage) -> Iterator[Path]:
    """Write every figure of the page, and yield the paths."""
    for name, figure in _named(page):
        yield figure.save(folder / f"{name}.{suffix}", mode="light")


def _named(page: ComparisonPage) -> Iterator[tuple[str, Figure]]:
    """Yield every figure under a name of its own, of question and figure, that any file system takes.

    Figures of a question that share a name get their titles into it, and a number where that does not help.
    """
    found = [(each.answer.question.CODE, figure) for each in page.shown for figure in each.figures]
    slugs = [_plain(f"{code}-{figure.slug.removeprefix(f'{code}-')}") for code, figure in found]
    shared = Counter(slugs)
    seen: Counter[str] = Counter()
    for slug, (code, figure) in zip(slugs, found, strict=True):
        name = slug if shared[slug] == 1 else _plain(f"{code}-{figure.title}")
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}--{seen[name]}", figure


def _plain(name: str) -> str:
    """Keep letters, digits and single hyphens of a name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:80] or "figure"


def _tables(folder: Path, page: ComparisonPage, answers: "pl.DataFrame", records: "pl.DataFrame") -> Iterator[Path]:
    """Write the three tables, and yield their paths."""
    import polars as pl

    contrasts = [
        _contrast(shown.answer, verdict)
        for shown in page.shown
        for verdict in (shown.answer.verdict, *shown.answer.verdict.parts)
    ]
    frames = {"answers": answers, "contrasts": pl.DataFrame(contrasts, infer_schema_length=None), "records": records}
    for name, frame in frames.items():
        yield save(folder / f"{name}.csv", frame.write_csv())


def _contrast(answer: Answer, verdict: Verdict) -> dict[str, Any]:
    """Return a contrast as a row."""
    effect = verdict.effect
    return {
        "question": answer.question.CODE,
        "asks": answer.asks,
        "decides": verdict is answer.verdict,
        "claim": verdict.claim,
        "conditions": "; ".join(f"{each.name}: {each.value}" for each in verdict.conditions),
        "quantity": verdict.endpoint,
        "effect": effect.point,
        "low": effect.low,
        "high": effect.high,
        "level": effect.level,
        "method": effect.method,
        "scale": effect.scale,
        "unit": effect.unit,
        "seeds": effect.n,
        "amount": verdict.amount,
        "numbers": verdict.reason,
        "margin": verdict.margin,
        "margin_reason": verdict.margin_reason,
        "p_value": verdict.p_value,
        "adjusted_p": verdict.adjusted_p,
        "word": "" if answer.described else verdict.outcome.value,
        "why": verdict.why,
        "premises": "; ".join(f"{'met' if each.met else 'not met'}: {each.words}" for each in verdict.premises),
    }


def _latex(page: ComparisonPage) -> str:
    """Return the table of questions, effects, intervals and words."""
    rows = [(shown.answer.asks, *_effect(shown.answer), shown.answer.word or "described") for shown in page.shown]
    levels = sorted({f"{100 * shown.answer.verdict.effect.level:.3g} %" for shown in page.shown})
    comments = [
        page.title,
        page.lede,
        f"Intervals: {' and '.join(levels)}, over seeds, of each answer alone. Words: after Holm's correction.",
        r"Needs \usepackage{booktabs}; \input this file where the table is to stand.",
    ]
    return booktabs(_HEADS, rows, _COLUMNS, comments=comments)


def _effect(answer: Answer) -> tuple[str, str]:
    """Return effect and interval of an answer in natural units; a dash where there is none."""
    amount = described_amount(answer.verdict) if answer.described else amount_of(answer.verdict)
    point, interval = point_and_interval(amount)
    return point or "–", interval or "–"
