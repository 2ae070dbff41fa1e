"""The page of questions: hand-written answers, with the numbers of a condensed file put in."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from normscope._errors import DataError
from normscope.plots import Figure
from normscope.records import Question, Verdict, standing
from normscope.records.addresses import save
from normscope.records.answers import contrast_named
from normscope.report._condensed import CondensedEvidence, CondensedStudy

_NUMBER = re.compile(r"\{([^{}]+)\}")
_LEDE = """# Questions

What people ask about normalization, in their words, and what was measured. Every number is an effect with its
interval over seeds, on the networks and data that stand under it; `normscope study show STUDY` says how it was
measured, and [Evidence](evidence.md) lists all studies. The words are those of a fixed rule: an effect *holds* if its
whole interval lies beyond the margin that matters, there is *no effect that matters* if it lies within."""


def disagreements(questions: Sequence[Question], evidence: CondensedEvidence) -> list[str]:
    """List what the hand-written answers take for granted and the evidence does not say.

    Args:
        questions: The questions.
        evidence: What was measured.

    Returns:
        A line for each contrast that is missing or has another word than an answer rests on, and for each number in an
        answer on whose word the answer does not say that it rests.
    """
    verdicts = {study.slug: study.verdict for study in evidence.studies}
    lines = []
    for question in questions:
        rests = {(each.study, each.contrast) for each in question.rests_on}
        for each in question.rests_on:
            found = _find(verdicts, each.study, each.contrast)
            if found is None:
                lines.append(f"{question.asks}: there is no contrast {each.contrast!r} of {each.study}")
            elif each.word not in (found.outcome.value, standing(found)):
                lines.append(
                    f"{question.asks}: the answer takes {each.study} / {each.contrast} to be {each.word!r}, "
                    f"and it is {found.outcome.value!r} ({found.amount})"
                )
        lines += [
            f"{question.asks}: the answer shows {{{place}}} and does not rest on its word"
            for place in _NUMBER.findall(question.answer)
            if _parts(place) not in rests
        ]
    return lines


def questions_page(
    questions: Sequence[Question],
    evidence: CondensedEvidence,
    images: str = "",
    atlas: Mapping[str, str] | None = None,
) -> str:
    """Return the page as Markdown.

    Args:
        questions: In the order of the page.
        evidence: Gives the numbers.
        images: Folder of the pictures, as the page links to it; empty for a page without pictures.
        atlas: What the networks of the atlas answer, by the code of a question of a comparison; it stands under the
            questions that name that code. None for a page without it.

    Raises:
        DataError: An answer takes for granted what the evidence does not say, or the atlas lacks a question.
    """
    if wrong := disagreements(questions, evidence):
        raise DataError(f"{len(wrong)} answers do not agree with the evidence; the first: {wrong[0]}")
    studies = {study.slug: study for study in evidence.studies}
    parts = [_LEDE, "\n".join(f"- [{each.asks}](#{_anchor(each.asks)})" for each in questions)]
    for question in questions:
        parts += [f"## {question.asks}", _answer(question, {slug: study.verdict for slug, study in studies.items()})]
        picture = studies[question.picture].picture
        if images and picture is not None:
            parts.append(f"![{picture.alt}]({images}/{question.picture}.svg)\n\n*{picture.caption}*")
        slugs = dict.fromkeys(each.study for each in question.rests_on)
        parts.append(f"Measured on {_here([studies[slug] for slug in slugs])}: {', '.join(f'`{s}`' for s in slugs)}.")
        if atlas is not None and question.atlas:
            if question.atlas not in atlas:
                raise DataError(f"{question.asks}: no network of the atlas answers {question.atlas!r}")
            parts.append(f"On the networks of [the atlas](atlas.md): {atlas[question.atlas]}")
        parts.append(f"Run it yourself:\n\n```sh\n{question.command}\n```")
        if question.text:
            parts.append(f"Asked in: {question.text}.")
    return "\n\n".join(parts) + "\n"


def write_questions(
    path: str | Path,
    questions: Sequence[Question],
    evidence: CondensedEvidence,
    atlas: Mapping[str, str] | None = None,
) -> Path:
    """Write the page of questions as Markdown, with its pictures as SVG files in ``images/questions`` beside it.

    Args:
        path: The Markdown file.
        questions: In the order of the page.
        evidence: Gives numbers and pictures.
        atlas: As in `questions_page`.

    Returns:
        The path. Nothing is written where an answer does not agree with the evidence.

    Raises:
        DataError: An answer takes for granted what the evidence does not say, or the atlas lacks a question.
        StoreError: A file cannot be written.
    """
    page = questions_page(questions, evidence, "images/questions", atlas)
    studies = {study.slug: study for study in evidence.studies}
    for slug in dict.fromkeys(question.picture for question in questions):
        picture = studies[slug].picture
        if picture is not None:
            figure = Figure(picture.slug, picture.title, picture.caption, picture.alt, json.loads(picture.spec))
            figure.save(Path(path).parent / "images" / "questions" / f"{slug}.svg")
    return save(path, page)


def _answer(question: Question, verdicts: Mapping[str, Verdict]) -> str:
    """Return the sentences with their numbers."""

    def amount(match: re.Match[str]) -> str:
        found = _find(verdicts, *_parts(match.group(1)))
        assert found is not None
        return found.amount

    return _NUMBER.sub(amount, " ".join(question.answer.split()))


def _parts(place: str) -> tuple[str, str]:
    """Return study and contrast of a place for a number."""
    study, _, contrast = (part.strip() for part in place.partition("/"))
    return study, contrast


def _find(verdicts: Mapping[str, Verdict], study: str, contrast: str) -> Verdict | None:
    return contrast_named(verdicts[study], contrast) if study in verdicts else None


def _here(studies: Sequence[CondensedStudy]) -> str:
    """Say on what the studies of an answer ran."""
    return "; ".join(dict.fromkeys(study.verdict.here or study.data for study in studies))


def _anchor(title: str) -> str:
    """Return the address that Markdown gives to a heading."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())
