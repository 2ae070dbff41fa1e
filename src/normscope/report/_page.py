"""The report as one HTML file: its contents, their order, and the scripts and styles that it carries."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope import plots
from normscope.records import Erratum, Sentence, Verdict
from normscope.records.addresses import save
from normscope.report import _overview, _text
from normscope.report._overview import FEW
from normscope.report._sections import Section, duration
from normscope.report._study import overview, study
from normscope.report._words import is_identity

if TYPE_CHECKING:
    from jinja2 import Environment

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
    sections = sorted(sections, key=lambda section: any(map(is_identity, section.verdicts[:1])))  # identities apart
    anchors = _anchors([section.slug for section in sections])
    charts: dict[str, Any] = {}
    studies = [study(section, anchor, charts) for section, anchor in zip(sections, anchors, strict=True)]
    top = overview(studies, charts)
    many = top["judged"] > FEW
    by_slug = {each["slug"]: each for each in studies}
    return (
        environment()
        .get_template("page.html")
        .render(
            title=title,
            lede=lede,
            top=top,
            studies=studies,
            many=many,
            headline=headline(provenance, times),
            provenance=list(flat(provenance)),
            times=_shares(times),
            total=sum(times.values()),
            filters=_overview.filters(studies),
            sentences=_overview.sentences_by_text(sentences, by_slug),
            errata=_overview.errata_with_figures(errata, by_slug),
            theory=_overview.theory(sections, studies) if many else [],
            level=levels([each["verdict"] for each in top["experiments"]]),
            **resources(charts),
        )
    )


def environment() -> "Environment":
    """Return the templates, in which everything is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("normscope.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": _text.html, "inline": _text.inline, "duration": duration}
    return environment


def resources(charts: Mapping[str, Any]) -> dict[str, str]:
    """Return styles, scripts with the hashes that admit them, and the data of the charts."""
    data = {"charts": charts, "themes": {mode: plots.theme(mode) for mode in ("light", "dark")}}
    scripts = {"early": _resource("early.js"), "bundle": _bundle(), "js": _resource("page.js")}
    hashes = " ".join(_hash(script) for script in scripts.values())
    return {"css": _resource("page.css"), "data": _safe_json(data), "script_hashes": hashes, **scripts}


def _hash(script: str) -> str:
    """Return the source expression by which the page's policy admits this script, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def headline(provenance: Mapping[str, Any], times: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the few facts of the provenance that stand under the title."""
    by_name = {key.rpartition(".")[2]: value for key, value in reversed(list(flat(provenance)))}
    facts = [(key.replace("_", " ").replace(" utc", ""), by_name[key]) for key in _HEADLINE if by_name.get(key)]
    if times:
        facts.append(("took", duration(sum(times.values()))))
    return facts


def flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) for every leaf."""
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif isinstance(value, list | tuple | set | frozenset):
            yield name, ", ".join(map(str, value))
        else:
            yield name, "–" if value is None else str(value)


def _shares(times: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Return (name, seconds, percent of the longest)."""
    longest = max(times.values(), default=0.0)
    return [(name, seconds, 100 * seconds / longest if longest > 0 else 0.0) for name, seconds in times.items()]


def levels(verdicts: Sequence[Verdict]) -> str:
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
