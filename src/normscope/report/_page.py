"""The report as one HTML file: its contents, their order, and the scripts and styles that it carries."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from normscope import plots
from normscope.plots import Figure, Table
from normscope.records import Erratum, Outcome, Sentence, Verdict
from normscope.records.files import save
from normscope.report import _overview, _text
from normscope.report._sections import Section, cell, duration

_OPEN = ("Threats",)  # headings that stand open; the others fold
_HEADLINE = ("data", "preset", "seeds", "device", "normscope", "time_utc", "time", "created")


def write(
    path: str | Path,
    *,
    title: str,
    sections: Sequence[Section],
    provenance: Mapping[str, Any] | None = None,
    times: Mapping[str, float] | None = None,
    lede: str = "",
    sentences: Sequence[Sentence] = (),
    errata: Sequence[Erratum] = (),
) -> Path:
    """Write the report: one HTML file with all it needs, which opens without a network.

    Args:
        path: Target; folders above it are made.
        title: Title of the page.
        sections: The studies, in order.
        provenance: What made the numbers: versions, machine, commit; may be nested.
        times: Seconds by the name of the study that took them.
        lede: What was run, in a sentence; under the title.
        sentences: Claims of texts, shown after the studies with links to the studies that judge them.
        errata: Errors of texts and papers, shown with the figures of studies.

    Returns:
        The path written. The file appears whole or not at all.

    Raises:
        StoreError: The path cannot be written.
    """
    page = render(
        title=title,
        sections=sections,
        provenance=provenance or {},
        times=times or {},
        lede=lede,
        sentences=sentences,
        errata=errata,
    )
    return save(path, page)


def render(
    *,
    title: str,
    sections: Sequence[Section],
    provenance: Mapping[str, Any],
    times: Mapping[str, float],
    lede: str = "",
    sentences: Sequence[Sentence] = (),
    errata: Sequence[Erratum] = (),
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
    many = len(primaries) > _overview.FEW
    if len(primaries) > 1 and not many:
        overview = _figure(plots.forest(primaries, title="All effects"), "overview", charts)
    far = _overview.reach(primaries)
    if many:
        for study in studies:
            if study["verdict"]:
                study["verdict"]["strip"] = _overview.strip(study["primary"], far)
    by_slug = {study["slug"]: study for study in studies}
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
        many=many,
        ticks=_overview.ticks(far),
        size=(_overview.WIDTH, _overview.HEIGHT, _overview.position(0, far)),
        filters=_overview.filters(studies),
        sentences=_overview.sentences_by_text(sentences, by_slug),
        errata=_overview.errata_with_figures(errata, by_slug),
        theory=_overview.theory(sections, studies) if many else [],
        level=_levels(primaries),
    )


def _study(section: Section, anchor: str, charts: dict[str, Any]) -> dict[str, Any]:
    """Return a section as the template shows it."""
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
        "texts": section.texts or (_overview.EXTENSION,),
        "kind": section.kind,
        "claim": section.claim or (primary.claim if primary else ""),
        "primary": primary,
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
        "strip": None,
    }


def _figure(figure: Figure, key: str, charts: dict[str, Any]) -> dict[str, Any]:
    """Add a figure's spec to the page's charts and return the rest."""
    charts[key] = {"spec": figure.spec, "alt": figure.alt, "name": figure.slug}
    return {"key": key, "slug": figure.slug, "title": figure.title, "caption": figure.caption, "alt": figure.alt}


def _table(table: Table) -> dict[str, Any]:
    """Return a table in words, with the columns that hold numbers marked."""
    numeric = [
        bool(table.rows) and all(_is_number(row[i]) or row[i] in (None, "") for row in table.rows)
        for i in range(len(table.columns))
    ]
    rows = [[cell(value) for value in row] for row in table.rows]
    return {"title": table.title, "columns": table.columns, "rows": rows, "caption": table.caption, "numeric": numeric}


def _is_number(value: Any) -> bool:
    """Return whether a cell holds a number, also as text ("−1.2e−4")."""
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
    """Return (name, seconds, percent of the longest)."""
    longest = max(times.values(), default=0.0)
    return [(name, seconds, 100 * seconds / longest if longest > 0 else 0.0) for name, seconds in times.items()]


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
