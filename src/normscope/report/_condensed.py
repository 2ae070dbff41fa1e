"""Verdicts without their records, as one small JSON file that can be committed."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normscope._errors import StoreError
from normscope.plots import Table
from normscope.records import Erratum, Sentence, Verdict
from normscope.records.json import build, plain
from normscope.report._sections import cell

FORMAT = "normscope evidence"
VERSION = 1
_AGAIN = "make it with `normscope report RUNS --condense FILE`"


@dataclass(frozen=True, slots=True)
class TheoryRow:
    """A measured number and its theoretical value, as they are shown.

    Attributes:
        quantity: What it is.
        measured: The mean over seeds.
        theory: The value of theory.
        ratio: Measured over theory.
    """

    quantity: str
    measured: str
    theory: str
    ratio: str


@dataclass(frozen=True, slots=True)
class CondensedStudy:
    """A judged study, with the conditions of its numbers.

    Attributes:
        slug: Name of the study.
        card: Its number in the catalogue.
        title: Its title.
        topic: What it is about.
        texts: Titles of the texts of which it judges a sentence.
        verdict: The verdict with its parts, after correction over all studies of the file.
        theory: Measured numbers for which there is a theoretical value.
        preset: Name of its preset.
        data: Name of the data.
        device: Where it ran.
        seeds: The replicates behind the verdict.
        seconds: Wall time of its cells, one after the other.
        normscope: Version.
        torch: Version.
        cores: Cores that the run could use; None if that was not known.
        cpu: Kind of the processor.
        command: The command that runs it again.
    """

    slug: str
    card: int
    title: str
    topic: str
    texts: tuple[str, ...]
    verdict: Verdict
    theory: tuple[TheoryRow, ...]
    preset: str
    data: str
    device: str
    seeds: tuple[int, ...]
    seconds: float
    normscope: str
    torch: str
    cores: int | None
    cpu: str
    command: str


@dataclass(frozen=True, slots=True)
class CondensedEvidence:
    """The contents of a condensed file, which can be committed: verdicts without records.

    Attributes:
        lede: What was run, in a sentence.
        commands: What made the file, line by line.
        studies: The studies, in the order of their cards.
        sentences: What the source texts say.
        errata: What texts and papers state wrongly.
    """

    lede: str
    commands: tuple[str, ...]
    studies: tuple[CondensedStudy, ...]
    sentences: tuple[Sentence, ...]
    errata: tuple[Erratum, ...]


def theory_rows(tables: Iterable[Table]) -> Iterator[TheoryRow]:
    """Yield the rows of tables that hold a measured column, then ``Theory``, and somewhere ``Ratio``.

    Args:
        tables: A study's; those without these columns are passed over.
    """
    for table in tables:
        if not {"Theory", "Ratio"} <= set(table.columns):
            continue
        theory, ratio = table.columns.index("Theory"), table.columns.index("Ratio")
        measured = table.columns[theory - 1]
        for row in table.rows:
            values = [cell(value) for value in row]
            if theory == 2:
                quantity = values[0] if table.title == "Against theory" else f"{table.title}: {values[0]}"
            else:
                points = zip(table.columns[: theory - 1], values[: theory - 1], strict=True)
                quantity = f"{measured}: " + ", ".join(f"{name.lower()} {value}" for name, value in points)
            yield TheoryRow(quantity, values[theory - 1], values[theory], values[ratio])


def dumps(evidence: CondensedEvidence) -> str:
    """Return the file's text."""
    document = {"format": FORMAT, "version": VERSION, **plain(evidence)}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: str | Path) -> CondensedEvidence:
    """Read a file that `dumps` wrote, strictly.

    Raises:
        StoreError: The file is missing, cut short, of another kind or version, or lacks or garbles a field.
    """
    source = Path(path)
    try:
        document = json.loads(
            source.read_text(encoding="utf-8"), parse_constant=_refuse, object_pairs_hook=_without_repeats
        )
    except OSError as error:
        raise StoreError(f"cannot read {source}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise StoreError(f"{source} is not whole JSON: {_AGAIN}") from None
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise StoreError(f"{source} holds no condensed verdicts: {_AGAIN}")
    version = document.pop("version", None)
    if type(version) is not int or version != VERSION:
        raise StoreError(f"{source} has layout {str(version)[:20]}, this version reads {VERSION}: {_AGAIN}")
    try:
        evidence: CondensedEvidence = build(CondensedEvidence, document)
    except ValueError as error:
        raise StoreError(f"{source} is damaged ({error}): {_AGAIN}") from None
    return evidence


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)
