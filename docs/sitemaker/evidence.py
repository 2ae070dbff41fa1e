"""What the committed evidence says of each study: answer, picture, contrasts; and the gallery of all pictures."""

import json
from functools import cache
from pathlib import Path

from normscope.explain import committed
from normscope.plots import Figure
from normscope.records import answer, standing
from normscope.report import CondensedStudy, amount_of
from sitemaker.markup import prose

PICTURES = "reference/studies/pictures"


@cache
def _studies() -> dict[str, CondensedStudy]:
    return {study.slug: study for study in committed().studies}


def answer_of(slug: str) -> list[str]:
    """Return what a study answers, as parts of a page: word, sentences, picture, contrasts, conditions, command."""
    study = _studies().get(slug)
    if study is None:
        run = f"```sh\nnormscope study run {slug}\n```"
        return ["## Answer", "The evidence of this version has none. This command measures it:", run]
    verdict = study.verdict
    word = standing(verdict)
    amount = amount_of(verdict)
    parts = ["## Answer", f"**{word[:1].upper()}{word[1:]}**{f': {amount}' if amount else ''}."]
    parts += [prose(part) for part in answer(verdict).split("\n\n")]
    if study.picture is not None:
        parts.append(f"![{_flat(study.picture.alt)}](pictures/{slug}.svg)\n\n*{prose(study.picture.caption)}*")
    if verdict.parts:
        rows = [
            (each.claim, ", ".join(c.value for c in each.conditions if c.name != "arms") or each.endpoint,
             amount_of(each) or "–", each.outcome.value)
            for each in (verdict, *verdict.parts)
        ]  # fmt: skip
        parts += ["### All contrasts", _table(("claim", "condition", "effect (interval)", "word"), rows)]
    if study.theory:
        theory = [(row.quantity, row.measured, row.theory, row.ratio) for row in study.theory]
        parts += ["### Measured against theory", _table(("quantity", "measured", "theory", "ratio"), theory)]
    made = (
        f"Data {study.data}, preset {study.preset}, {len(study.seeds)} seeds an arm, device {study.device}; "
        f"normscope {study.normscope}, torch {study.torch}."
    )
    return [*parts, "### Run it again", f"{made}", f"```sh\n{study.command}\n```"]


def gallery() -> str:
    """Return the page of all pictures, each with a link to its study."""
    parts = [
        "# Gallery",
        "One picture of each study in [the evidence](evidence.md). A study's page has the answer, the numbers and the "
        "command that makes the picture again; `normscope report` draws more of them.",
    ]
    for study in _studies().values():
        if study.picture is not None:
            page = f"reference/studies/{study.slug}.md"
            parts += [
                f"## {prose(study.picture.title)}",
                f"[![{_flat(study.picture.alt)}]({PICTURES}/{study.slug}.svg)]({page})",
                f"{prose(study.picture.caption)} [{prose(study.verdict.claim)}]({page})",
            ]
    return "\n\n".join(parts) + "\n"


def draw(folder: Path) -> int:
    """Write the picture of each study as SVG for a light and a dark page; return how many there are.

    Args:
        folder: Is made. ``SLUG.svg`` is for light pages, ``SLUG.dark.svg`` for dark pages.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = 0
    for study in _studies().values():
        if (picture := study.picture) is not None:
            figure = Figure(picture.slug, picture.title, picture.caption, picture.alt, json.loads(picture.spec))
            figure.save(folder / f"{study.slug}.svg")
            figure.save(folder / f"{study.slug}.dark.svg", mode="dark")
            drawn += 1
    return drawn


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [
        columns,
        ("---",) * len(columns),
        *(tuple(prose(cell).replace("|", "\\|") for cell in row) for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("[", "(").replace("]", ")")
