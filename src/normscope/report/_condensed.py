"""Verdicts without their records, as one small JSON file that can be committed."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normscope._errors import StoreError
from normscope._unit import web_page
from normscope.plots import Figure, Table
from normscope.records import Erratum, Sentence, Verdict, documents
from normscope.report._sections import Section, cell

FORMAT = "normscope evidence"
VERSION = 2  # 1 had three words, and contrasts without conditions
_LARGEST_PICTURE = 20_000  # letters of a spec: all studies together stay below two megabytes
_COMMAND = "normscope report RUNS --condense FILE"


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
class Picture:
    """The first figure of a study, small enough to be committed.

    Attributes:
        slug: Name of the figure.
        title: What it shows.
        caption: How to read it.
        alt: The same for those who do not see it.
        spec: Its description as JSON text.
    """

    slug: str
    title: str
    caption: str
    alt: str
    spec: str


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
        picture: Its first figure; None where that is large.
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
    picture: Picture | None = None


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


def picture_of(figures: Sequence[Figure]) -> Picture | None:
    """Return the first figure for a condensed file, at fewer steps where it is large; None where it stays too large."""
    if not figures:
        return None
    first = figures[0]
    spec = _compact(first.spec)
    if len(spec) > _LARGEST_PICTURE:
        spec = _compact(_at_fewer_steps(first.spec, _LARGEST_PICTURE / len(spec)))
    small = len(spec) <= _LARGEST_PICTURE
    return Picture(first.slug, first.title, first.caption, first.alt, spec) if small else None


def _compact(spec: Any) -> str:
    return json.dumps(spec, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _at_fewer_steps(value: Any, share: float) -> Any:
    """Return a spec with about this share of the places along ``x``, evenly spaced, the first and last among them."""
    if isinstance(value, list):
        places = sorted({row["x"] for row in value if isinstance(row, dict) and isinstance(row.get("x"), int | float)})
        keep = max(2, int(0.9 * share * len(places)))
        if len(places) <= keep:
            return [_at_fewer_steps(item, share) for item in value]
        kept = {places[round(i * (len(places) - 1) / (keep - 1))] for i in range(keep)}
        return [row for row in value if row["x"] in kept]
    if isinstance(value, dict):
        return {key: _at_fewer_steps(item, share) for key, item in value.items()}
    return value


def sections_of(evidence: CondensedEvidence, pages: Mapping[str, Mapping[str, str]]) -> list[Section]:
    """Return the studies of a condensed file as a page shows them: no figures but the small ones.

    Args:
        evidence: The file's contents.
        pages: Text under each heading of a study's page, by slug, where the study is installed.

    Raises:
        StoreError: The spec of a picture is no JSON object.
    """
    return [
        Section(
            slug=study.slug,
            title=study.title,
            claim=study.verdict.claim,
            page=pages.get(study.slug, {}),
            verdicts=(study.verdict,),
            figures=_figures(study),
            tables=_theory_table(study.theory),
            command=study.command,
            topic=study.topic,
            texts=study.texts,
            address=web_page("studies", study.slug) if study.slug in pages else "",
        )
        for study in evidence.studies
    ]


def _figures(study: CondensedStudy) -> tuple[Figure, ...]:
    if (kept := study.picture) is None:
        return ()
    try:
        spec = json.loads(kept.spec, parse_constant=documents.refuse)
    except (ValueError, RecursionError):
        spec = None
    if not isinstance(spec, dict):
        raise StoreError(f"the picture of {study.slug} is damaged: make it with `{_COMMAND}`")
    return (Figure(kept.slug, kept.title, kept.caption, kept.alt, spec),)


def _theory_table(rows: Sequence[TheoryRow]) -> tuple[Table, ...]:
    listed = tuple((row.quantity, row.measured, row.theory, row.ratio) for row in rows)
    return (Table("Against theory", ("Quantity", "Measured", "Theory", "Ratio"), listed),) if rows else ()


def dumps(evidence: CondensedEvidence) -> str:
    """Return the file's text."""
    return documents.dumps(evidence, FORMAT, VERSION)


def read(path: str | Path) -> CondensedEvidence:
    """Read a file that `dumps` wrote, strictly.

    Raises:
        StoreError: The file is missing, cut short, of another kind or version, or lacks or garbles a field.
    """
    return documents.read(path, CondensedEvidence, FORMAT, VERSION, "condensed verdicts", _COMMAND)
