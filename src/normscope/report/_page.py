"""The page: what is written, in which order, and how it comes to lie in one file."""

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from normscope import plots
from normscope._errors import StoreError
from normscope.plots import Figure, Table
from normscope.records import Outcome, Verdict
from normscope.report import _text

_OPEN = ("Threats",)  # headings that stand open; the others fold
_HEADLINE = ("data", "preset", "seeds", "device", "normscope", "time_utc", "time", "created")


@dataclass(frozen=True, slots=True)
class Section:
    """One study on the page.

    Attributes:
        slug: Name of the study; the section's address on the page.
        title: Its title.
        claim: The claim in a sentence or two.
        page: Text under each heading of the study's docstring.
        verdicts: The verdicts, the primary one first.
        figures: What answers the claim, in order.
        tables: Numbers, in order.
        command: The command that runs it again.
        notes: Sentences that a reader must not miss; shown before the figures.
        topic: What it is about, for the filter of a page of many studies.
        kind: ``"study"``, or ``"probe"`` where nothing is claimed or judged.
        texts: Titles of the texts whose claims it judges, for the filter.
    """

    slug: str
    title: str
    claim: str
    page: Mapping[str, str]
    verdicts: tuple[Verdict, ...]
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    command: str = ""
    notes: tuple[str, ...] = ()
    topic: str = ""
    kind: str = "study"
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Appendix:
    """A table behind the studies whose last column names some of them; the page links each to its section.

    Attributes:
        slug: Its address on the page.
        title: Heading.
        lede: What it lists, in a sentence.
        columns: Titles, the last one that of the studies.
        rows: For each its words, and the slugs; a slug without a section on the page stands unlinked.
    """

    slug: str
    title: str
    lede: str
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


def write(
    path: str | Path,
    *,
    title: str,
    sections: Sequence[Section],
    provenance: Mapping[str, Any] | None = None,
    times: Mapping[str, float] | None = None,
    lede: str = "",
    appendices: Sequence[Appendix] = (),
) -> Path:
    """Write the report: one HTML file with all it needs, which opens without a network.

    Args:
        path: Target; folders above it are made.
        title: Title of the page.
        sections: The studies, in order.
        provenance: What made the numbers: versions, machine, commit; may be nested.
        times: Seconds by what took them.
        lede: What was run, in a sentence; under the title.
        appendices: Tables behind the studies.

    Returns:
        The path written. The file appears whole or not at all.

    Raises:
        StoreError: The path cannot be written.
    """
    target = Path(path)
    page = render(
        title=title,
        sections=sections,
        provenance=provenance or {},
        times=times or {},
        lede=lede,
        appendices=appendices,
    )
    if target.is_dir():
        raise StoreError(
            f"cannot write the report to {target}: it is a folder; name a file such as {target / 'report.html'}"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="\n") as file:
                file.write(page)
            temporary.chmod(0o644)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot write the report to {target}: {error.strerror or error}; choose another path"
        ) from error
    return target


def render(
    *,
    title: str,
    sections: Sequence[Section],
    provenance: Mapping[str, Any],
    times: Mapping[str, float],
    lede: str = "",
    appendices: Sequence[Appendix] = (),
) -> str:
    """Return the page as text. Arguments as in ``write``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("normscope.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": _text.html, "inline": _text.inline, "duration": duration}
    anchors = _anchors([section.slug for section in sections])
    primaries = [verdict for section in sections for verdict in section.verdicts[:1]]
    charts: dict[str, Any] = {}
    studies = [_study(section, anchor, charts) for section, anchor in zip(sections, anchors, strict=True)]
    overview = None
    if len(primaries) > 1:
        overview = _figure(plots.forest(primaries, title="All effects"), "overview", charts)
    data = {"charts": charts, "themes": {mode: plots.theme(mode) for mode in ("light", "dark")}}
    scripts = (_resource("early.js"), _bundle(), _resource("page.js"))
    return environment.get_template("page.html").render(
        title=title,
        lede=lede,
        studies=studies,
        overview=overview,
        tally=[(o.value, plots.outcome_icon(o), sum(v.outcome is o for v in primaries)) for o in Outcome],
        judged=len(primaries),
        headline=_headline(provenance, times),
        provenance=list(_flat(provenance)),
        times=_shares(times),
        total=sum(times.values()),
        data=_safe_json(data),
        css=_resource("page.css"),
        early=scripts[0],
        bundle=scripts[1],
        js=scripts[2],
        script_hashes=" ".join(_hash(script) for script in scripts),
        overview_rows=[(s["verdict"], s) for s in studies if s["verdict"]],
        filters=_filters(studies),
        appendices=[_appendix(one, dict(zip((s.slug for s in sections), studies, strict=True))) for one in appendices],
        level=_levels(primaries),
    )


def duration(seconds: float) -> str:
    """Write a time for reading: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def cell(value: Any) -> str:
    """Write the value of a table's cell."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plots.number(value) if isinstance(value, float) else str(value)


def _study(section: Section, anchor: str, charts: dict[str, Any]) -> dict[str, Any]:
    """Return what the template shows of a section."""
    primary = section.verdicts[0] if section.verdicts else None
    others = [v for verdict in section.verdicts for v in ((verdict, *verdict.parts) if verdict.primary else (verdict,))]
    parts = [_verdict(v) for v in others if v is not primary]
    folds = {
        head: text
        for head, text in section.page.items()
        if head not in _OPEN and not (head == "Claim" and section.kind == "study") and text.strip()
    }
    return {
        "anchor": anchor,
        "slug": section.slug,
        "title": section.title,
        "topic": section.topic,
        "texts": "|".join(section.texts),
        "kind": section.kind,
        "claim": section.claim or (primary.claim if primary else ""),
        "verdict": _verdict(primary) if primary else None,
        "parts": parts,
        "part_rows": [(part, None) for part in parts],
        "notes": section.notes,
        "figures": [_figure(figure, f"{anchor}-{i}", charts) for i, figure in enumerate(section.figures, start=1)],
        "tables": [_table(table) for table in section.tables],
        "open": {head: section.page[head] for head in _OPEN if section.page.get(head, "").strip()},
        "folds": folds,
        "command": section.command,
    }


def _filters(studies: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """Return (what, its name on the rows, its values) of what tells the verdicts apart; nothing for a short list."""
    judged = [study for study in studies if study["verdict"]]
    found = [
        ("Verdict", "outcome", {study["verdict"]["outcome"] for study in judged}),
        ("Topic", "topic", {study["topic"] for study in judged if study["topic"]}),
        ("Source text", "texts", {text for study in judged for text in study["texts"].split("|") if text}),
    ]
    return [(what, key, sorted(values)) for what, key, values in found if len(judged) > 5 and len(values) > 1]


def _appendix(appendix: Appendix, studies: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the template shows of an appendix."""
    return {
        "anchor": _anchors([f"appendix-{appendix.slug}"])[0].removeprefix("study-"),
        "title": appendix.title,
        "lede": appendix.lede,
        "columns": appendix.columns,
        "rows": [(words, [(slug, studies.get(slug)) for slug in slugs]) for words, slugs in appendix.rows],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict in words."""
    effect = verdict.effect
    p = verdict.adjusted_p if verdict.adjusted_p is not None else verdict.p_value
    return {
        "study": verdict.study,
        "claim": verdict.claim,
        "outcome": verdict.outcome.value,
        "icon": plots.outcome_icon(verdict.outcome),
        "endpoint": verdict.endpoint,
        "effect": plots.effect_words(effect, margin=verdict.margin, style="plain"),
        "margin": plots.margin_words(verdict.margin, effect.scale),
        "level": f"{effect.level * 100:.3g} %",
        "n": effect.n,
        "method": effect.method,
        "reason": verdict.reason,
        "sources": verdict.sources,
        "p": "" if p is None else ("p < 0.001" if p < 1e-3 else f"p = {p:.2g}"),
        "adjusted": verdict.adjusted_p is not None,
    }


def _figure(figure: Figure, key: str, charts: dict[str, Any]) -> dict[str, Any]:
    """Add a figure's spec to the page's charts and return the rest."""
    charts[key] = {"spec": figure.spec, "alt": figure.alt, "name": figure.slug}
    return {"key": key, "title": figure.title, "caption": figure.caption, "alt": figure.alt}


def _table(table: Table) -> dict[str, Any]:
    """Return a table in words, with the columns that hold numbers marked."""
    numeric = [
        bool(table.rows) and all(_is_number(row[i]) or row[i] in (None, "") for row in table.rows)
        for i in range(len(table.columns))
    ]
    rows = [[cell(value) for value in row] for row in table.rows]
    return {"title": table.title, "columns": table.columns, "rows": rows, "caption": table.caption, "numeric": numeric}


def _is_number(value: Any) -> bool:
    """Return whether a cell holds a number, also one that is written out already ("−1.2e−4")."""
    if isinstance(value, int | float):
        return True
    try:
        float(str(value).replace("−", "-").removesuffix("%"))
    except ValueError:
        return False
    return True


def _hash(script: str) -> str:
    """Return the source expression by which the page's policy admits this script, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _headline(provenance: Mapping[str, Any], times: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the few facts of the provenance that stand under the title."""
    flat = {key.rpartition(".")[2]: value for key, value in reversed(list(_flat(provenance)))}
    facts = [(key.replace("_", " ").replace(" utc", ""), flat[key]) for key in _HEADLINE if flat.get(key)]
    if times:
        facts.append(("took", duration(sum(times.values()))))
    return facts


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) for every leaf."""
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list | tuple | set | frozenset):
            yield name, ", ".join(map(str, value))
        else:
            yield name, "–" if value is None else str(value)


def _shares(times: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Return (what, seconds, percent of the longest)."""
    longest = max(times.values(), default=0.0)
    return [(what, seconds, 100 * seconds / longest if longest > 0 else 0.0) for what, seconds in times.items()]


def _levels(verdicts: Sequence[Verdict]) -> str:
    """Return the confidence levels in use, in words."""
    return " and ".join(f"{level * 100:.3g} %" for level in sorted({v.effect.level for v in verdicts})) or "95 %"


def _anchors(slugs: Sequence[str]) -> list[str]:
    """Turn slugs into addresses that differ and hold nothing but letters, digits and hyphens."""
    seen: dict[str, int] = {}
    anchors = []
    for slug in slugs:
        plain = re.sub(r"[^A-Za-z0-9]+", "-", slug).strip("-")[:60] or "study"
        seen[plain] = seen.get(plain, 0) + 1
        anchors.append(f"study-{plain}" if seen[plain] == 1 else f"study-{plain}--{seen[plain]}")
    return anchors


def _safe_json(value: Any) -> str:
    """Write JSON that cannot end the script element it stands in, whatever strings it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


@cache
def _bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, in a scope of its own."""
    import vl_convert

    script = (
        vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        .replace("\r\n", "\n")
        .replace("</script", "<\\/script")
        .replace("<!--", "<\\!--")
    )
    return f"(()=>{{{script}}})();"


def _resource(name: str) -> str:
    """Read a file that lies beside the template."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
