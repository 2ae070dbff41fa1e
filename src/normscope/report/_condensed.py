"""What a page of studies says, as one small JSON document, and that document as Markdown."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from normscope import plots
from normscope._errors import StoreError
from normscope.records import Estimate, Outcome, Verdict
from normscope.report._page import Appendix, Section, cell, duration

FORMAT = "normscope evidence"
VERSION = 1
_KEPT = ("versions", "python", "cpu", "cores")  # of the provenance: what numbers depend on, and no name of a machine


def condense(
    sections: Sequence[Section],
    *,
    provenance: Mapping[str, Any],
    times: Mapping[str, float],
    lede: str = "",
    appendices: Sequence[Appendix] = (),
) -> dict[str, Any]:
    """Return the verdicts of a page, with what is needed to read them and to make them again, and no records.

    Args:
        sections: The studies, each with its primary verdict first.
        provenance: What made the numbers.
        times: Seconds by study slug.
        lede: What was run, in a sentence.
        appendices: Tables behind the studies.

    Returns:
        A document that JSON can hold: numbers without one (an unbounded end) are null.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "lede": lede,
        "provenance": {key: provenance[key] for key in _KEPT if key in provenance},
        "studies": [
            {
                "slug": section.slug,
                "title": section.title,
                "topic": section.topic,
                "texts": list(section.texts),
                "command": section.command,
                "seconds": round(times.get(section.slug, 0.0), 1),
                "verdict": _plain(asdict(section.verdicts[0])),
                "theory": [
                    {
                        "title": table.title,
                        "columns": list(table.columns),
                        "rows": [list(map(cell, r)) for r in table.rows],
                    }
                    for table in section.tables
                    if {"Theory", "Ratio"} <= set(table.columns)
                ],
            }
            for section in sections
            if section.verdicts
        ],
        "appendices": [asdict(appendix) for appendix in appendices],
    }


def save(path: str | Path, text: str) -> Path:
    """Write a text whole or not at all.

    Raises:
        StoreError: The path cannot be written.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8", newline="\n")
        os.replace(part, target)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise StoreError(f"cannot write {target}: {error.strerror or error}; choose another path") from None
    return target


def dumps(document: Mapping[str, Any]) -> str:
    """Return the document as JSON text."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: str | Path) -> dict[str, Any]:
    """Read a condensed document.

    Raises:
        StoreError: The file is missing, cut short, or another kind of file; the message says which.
    """
    source = Path(path)
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"cannot read {source}: {error.strerror or error}") from None
    except ValueError:
        raise StoreError(f"{source} is not whole JSON: make it again with `normscope report RUN --condense`") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
        raise StoreError(f"{source} is not evidence of this version: make it with `normscope report RUN --condense`")
    try:
        for study in document["studies"]:
            verdict_of(study)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{source} lacks or garbles {error}: make it again") from None
    return document


def verdict_of(study: Mapping[str, Any]) -> Verdict:
    """Return the primary verdict of a study of the document, as it was judged."""
    return _verdict(study["verdict"])


def markdown(document: Mapping[str, Any], *, command: str = "") -> str:
    """Return the document as a Markdown page: verdicts by topic, theory, what texts say, errata, times.

    Args:
        document: As ``condense`` makes or ``read`` reads it.
        command: The command that makes the page from the runs; each study's own stands beside it.
    """
    studies = document["studies"]
    verdicts = {study["slug"]: verdict_of(study) for study in studies}
    lines = ["# Evidence", "", f"{document['lede']}".strip(), ""]
    counts = [(outcome.value, sum(v.outcome is outcome for v in verdicts.values())) for outcome in Outcome]
    lines += [f"{len(verdicts)} claims judged: " + ", ".join(f"{count} {word}" for word, count in counts) + ".", ""]
    if command:
        lines += ["Made by", "", "```sh", command, "```", ""]
    versions = document["provenance"].get("versions", {})
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    cores = document["provenance"].get("cores", {}).get("usable", "")
    cpu = document["provenance"].get("cpu", "")
    lines += [f"with {said}; {cpu}, {cores} cores. Holm's correction is over all primary endpoints here. Effects are "
              "positive in the direction of the claim; an interval that clears the margin supports it."]  # fmt: skip
    for topic in sorted({study["topic"] for study in studies}):
        lines += ["", f"## {topic[:1].upper()}{topic[1:]}", ""]
        lines += ["| claim | verdict | effect (interval) | margin | seeds | why |", "|---|---|---|---|---|---|"]
        for study in studies:
            if study["topic"] == topic:
                lines.append(row(study, seeds=True))
    theory = [(study["slug"], table) for study in studies for table in study["theory"]]
    if theory:
        lines += ["", "## Measured against theory", ""]
        for slug, table in theory:
            lines += [
                f"{table['title']} (`{slug}`)",
                "",
                _line(table["columns"]),
                _line(["---"] * len(table["columns"])),
            ]
            lines += [_line(values) for values in table["rows"]] + [""]
    for appendix in document["appendices"]:
        lines += ["", f"## {appendix['title']}", "", appendix["lede"], ""]
        lines += [_line(appendix["columns"]), _line(["---"] * len(appendix["columns"]))]
        for words, slugs in appendix["rows"]:
            found = [f"`{slug}`" + (f" {verdicts[slug].outcome.value}" if slug in verdicts else "") for slug in slugs]
            lines.append(_line([*words, "<br>".join(found)]))
    lines += ["", "## Where the time went", "", "| study | time | command |", "|---|---|---|"]
    for study in sorted(studies, key=lambda one: -float(one["seconds"])):
        lines.append(_line([f"`{study['slug']}`", duration(study["seconds"]), f"`{study['command']}`"]))
    total = math.fsum(study["seconds"] for study in studies)
    lines += ["", f"{duration(total)} in all, the cells one after the other."]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def row(study: Mapping[str, Any], *, seeds: bool = False) -> str:
    """Return the verdict of a study as a row of a Markdown table."""
    verdict = verdict_of(study)
    effect = verdict.effect
    values = [
        f"{verdict.claim}<br>`{study['slug']}`",
        f"**{verdict.outcome.value}**",
        plots.effect_words(effect, margin=verdict.margin),
        plots.margin_words(verdict.margin, effect.scale),
    ]
    return _line([*values, *([str(effect.n)] if seeds else []), verdict.reason])


def _line(values: Sequence[Any]) -> str:
    return "| " + " | ".join(str(value).replace("|", "\\|").replace("\n", " ") for value in values) + " |"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else {math.inf: "inf", -math.inf: "-inf"}.get(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _verdict(given: Mapping[str, Any]) -> Verdict:
    effect = dict(given["effect"])
    for name in ("point", "low", "high", "level"):
        effect[name] = _number(effect[name])
    rest = {
        key: value for key, value in given.items() if key not in ("effect", "outcome", "sources", "parts", "margin")
    }
    return Verdict(
        **rest,
        effect=Estimate(**effect),
        outcome=Outcome(given["outcome"]),
        margin=_number(given["margin"]),
        sources=tuple(given["sources"]),
        parts=tuple(_verdict(part) for part in given["parts"]),
    )
