"""The atlas as Markdown: tables and sentences that a page of documentation holds between marks."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from normscope._errors import StoreError
from normscope.atlas.atlas import Atlas, Row
from normscope.atlas.cell import Cell
from normscope.atlas.layout import KeptComparison
from normscope.report import amount_of, between_marks, duration, markdown_table, point_and_interval
from normscope.studies import CaseQuestion

_BEGIN = r"<!-- atlas: (?P<part>table|sentences|claims|networks)(?: of (?P<codes>[\w, -]+?))? -->"
_END = "<!-- atlas: end -->"
_PLACES = ", ".join(f"<!-- atlas: {part} -->" for part in ("table", "sentences", "claims"))
_MARKS = f"{_PLACES} or <!-- atlas: networks -->, and after it {_END}"


def into(path: str | Path, atlas: Atlas) -> str:
    """Return a page's new text: the parts of the atlas that its marks name, and all else as it was.

    ``<!-- atlas: table -->`` begins the table of questions by networks, ``<!-- atlas: sentences -->`` the sentence of
    each question, ``<!-- atlas: claims -->`` the table of claims by networks, ``<!-- atlas: networks -->`` the table of
    the networks; ``<!-- atlas: end -->`` ends each.
    ``<!-- atlas: table of gradients, speed -->`` begins the table of some questions.

    Args:
        path: The Markdown file.
        atlas: The networks.

    Raises:
        StoreError: The file cannot be read, has no marks or has a mark alone, or a mark names an unknown question.
    """

    def part(mark: re.Match[str]) -> str:
        codes = [code.strip() for code in mark["codes"].split(",")] if mark["codes"] else None
        known = {row.code for row in atlas.rows}
        if unknown := [code for code in codes or () if code not in known]:
            raise StoreError(f"{path}: the atlas has no question {unknown[0]!r}, but {', '.join(sorted(known))}")
        return _PARTS[mark["part"]](atlas, codes)

    found = between_marks(path, _BEGIN, _END, part, advice=f"has a mark alone: put {_MARKS}")
    if found is None:
        raise StoreError(f"{path} has no place for the atlas: put {_MARKS}")
    return found


def table(atlas: Atlas, codes: Collection[str] | None = None) -> str:
    """Return the table of questions by networks, each cell a word with its effect.

    Args:
        atlas: The networks.
        codes: The questions; all if None.
    """
    rows = [
        [f"{row.number}. {row.asks}<br>`{row.code}`: {row.measured}", *_words(row, atlas)]
        for row in _rows(atlas, codes)
    ]
    return markdown_table(["question", *_heads(atlas)], rows)


def claims(atlas: Atlas, codes: Collection[str] | None = None) -> str:
    """Return the table of claims of studies by networks: a claim with its source, and a word with its effect.

    Args:
        atlas: The networks.
        codes: The questions that ask the claims; all if None.
    """
    rows = [
        [f"{unit.CLAIM}<br>`{unit.CODE}`, {unit.SOURCES[0]}; {_asked(row, unit.ON_A_CASE)}", *_words(row, atlas)]
        for row in _rows(atlas, codes)
        for unit in row.claims
    ]
    return markdown_table(["claim", *_heads(atlas)], rows)


def _asked(row: Row, on: CaseQuestion | str) -> str:
    """Return which question asks a claim, and how the question differs from the study."""
    differs = on.differs if isinstance(on, CaseQuestion) else ""
    return f"question {row.number}{f' ({differs})' if differs else ''}"


def sentences(atlas: Atlas, codes: Collection[str] | None = None) -> str:
    """Return a list of the questions, each with its sentence and what was tested of what separates the networks.

    Args:
        atlas: The networks.
        codes: The questions; all if None.
    """
    lines = []
    for row in _rows(atlas, codes):
        lines.append(f"{row.number}. {row.question}")
        lines += [f"    - {said}" for said in (*row.sentences, *row.tested)]
    return "".join(f"{line}\n" for line in lines)


def networks(atlas: Atlas) -> str:
    """Return the table of the networks and variants with how they were compared, and what made the numbers."""
    found = [*atlas.networks, *atlas.variants]
    every = {question.code: question.number for each in found for question in each.questions}
    rows = [
        (_named(each), each.network.layers_in_words, f"`{_options(each, every)}`", duration(each.seconds))
        for each in found
    ]
    made = markdown_table(("network", "layers", "options of `normscope compare`", "time"), rows)
    return f"{made}\n{_made(found)}\n"


_PARTS: dict[str, Callable[[Atlas, Collection[str] | None], str]] = {
    "table": table,
    "sentences": sentences,
    "claims": claims,
    "networks": lambda atlas, _: networks(atlas),
}


def _rows(atlas: Atlas, codes: Collection[str] | None) -> list[Row]:
    return [row for row in atlas.rows if codes is None or row.code in codes]


def _heads(atlas: Atlas) -> Iterator[str]:
    titles = {id(cell.comparison): cell.title for row in atlas.rows for cell in row.cells}
    for each in atlas.networks:
        yield titles[id(each)].replace(each.network.title, f"{each.network.name}<br>on {each.network.data}")


def _words(row: Row, atlas: Atlas) -> Iterator[str]:
    of = {id(cell.comparison): cell for cell in row.cells}
    for each in atlas.networks:
        yield _word(of[id(each)]) if id(each) in of else "–"


def _word(cell: Cell) -> str:
    point, _ = point_and_interval(amount_of(cell.answer.verdict))
    return f"**{cell.outcome.value}**{f'<br>{point}' if point else ''}"


def _named(kept: KeptComparison) -> str:
    network = kept.network
    if not network.differs_from:
        return network.title
    return f"{network.title}<br>differs from the {network.differs_from} in {network.differs_in}"


def _options(kept: KeptComparison, every: Collection[str]) -> str:
    """Return the options with which a network was compared."""
    asked = [question.code for question in kept.questions]
    rates = ",".join(f"{rate:g}" for rate in kept.rates)
    words = [f"--arms {','.join(kept.arms)}", f"--seeds {len(kept.seeds)}", f"--steps {kept.steps}"]
    words += [f"--rates {rates}"] if len(kept.rates) > 1 else []
    words += [f"--questions {','.join(asked)}"] if len(asked) < len(every) else []
    return " ".join(words)


def _made(found: Sequence[KeptComparison]) -> str:
    def each(values: Iterable[str]) -> str:
        return " and ".join(sorted(set(values)))

    machines = each(kept.machine for kept in found)
    total = duration(math.fsum(kept.seconds for kept in found))
    return (
        f"Made with normscope {each(kept.normscope for kept in found)} and torch {each(kept.torch for kept in found)}; "
        f"{machines}. All runs took {total}, one after the other on one thread each."
    )
