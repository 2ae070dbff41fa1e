"""The page of a scope: what stands out, the loss, one picture a probe, and all the rest folded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normscope.plots import Figure
from normscope.records.addresses import save
from normscope.report._page import environment, flat, headline, resources
from normscope.report._sections import Section
from normscope.report._study import figure, study

_FIRST = 8  # sentences that the first screen has room for


@dataclass(frozen=True, slots=True)
class Line:
    """A sentence at the top of the page.

    Attributes:
        says: The sentence; names of modules stand between backquotes.
        word: How it is to be taken: ``"broken"``, ``"costly"``, ``"notable"``; or the severity of a finding.
        about: Slug of the section that it is about; empty if there is none.
        cell: Name of the cell, where there are several.
    """

    says: str
    word: str
    about: str = ""
    cell: str = ""


@dataclass(frozen=True, slots=True)
class ScopePage:
    """What the page shows, in order.

    Attributes:
        title: Its title.
        lede: What was watched, in a sentence.
        doubts: Why what was read may be wrong or is not whole, in sentences.
        lines: What stands out, the most urgent first.
        quiet: What does not stand out, in a sentence.
        findings: The findings of the rules; None for a scope without rules.
        loss: The curve of the loss; None if it was not recorded.
        panels: Sections, one a probe, each with the picture that says most.
        not_read: (code, why) of what was not read.
        provenance: What made the numbers.
    """

    title: str
    lede: str
    doubts: Sequence[str] = ()
    lines: Sequence[Line] = ()
    quiet: str = ""
    findings: Section | None = None
    loss: Figure | None = None
    panels: Sequence[tuple[Section, Figure]] = ()
    not_read: Sequence[tuple[str, str]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


def write_scope(path: str | Path, page: ScopePage) -> Path:
    """Write the page: one HTML file with all it needs, which opens without a network.

    Args:
        path: Target; folders above it are made.
        page: What it shows.

    Returns:
        The path written. The file appears whole or not at all.

    Raises:
        StoreError: The path cannot be written.
    """
    return save(path, scope_html(page))


def scope_html(page: ScopePage) -> str:
    """Return the page as text."""
    charts: dict[str, Any] = {}
    findings = None if page.findings is None else study(page.findings, "study-rules", charts)
    loss = None if page.loss is None else figure(page.loss, "loss", charts)
    panels = []
    for section, picture in page.panels:
        anchor = f"study-{section.slug}"
        shown = study(section, anchor, charts) | {"figures": []}
        drawn = [figure(each, f"{anchor}-{number}", charts) for number, each in enumerate(section.figures)]
        words = [line for line in page.lines if line.about == section.slug]
        panels.append(shown | {"first": figure(picture, anchor, charts), "rest": drawn, "lines": words})
    return (
        environment()
        .get_template("scope.html")
        .render(
            page=page,
            first=page.lines[:_FIRST],
            more=page.lines[_FIRST:],
            findings=findings,
            loss=loss,
            panels=panels,
            headline=headline(page.provenance, {}),
            provenance=list(flat(page.provenance)),
            title=page.title,
            times=(),
            total=0.0,
            **resources(charts),
        )
    )
