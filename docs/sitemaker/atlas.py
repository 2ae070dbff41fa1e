"""What the networks of the atlas answer: for the pages of questions, for the guide, and as one page with pictures."""

import re
from functools import cache
from pathlib import Path

from normscope import atlas, comparing
from sitemaker.markup import prose

PAGE = "atlas-page.html"
_ASKED = re.compile(r"<br>`([\w-]+)`: ")


@cache
def _answers() -> dict[str, str]:
    return {row.code: row.answer for row in atlas.committed().rows}


def answer_of(code: str) -> list[str]:
    """Return what the networks answer to a question, as parts of a page; none if no network was asked."""
    found = _answers().get(code)
    if not found:
        return []
    lead, listed = found.split("\n\n")
    return [f"On the networks of [the atlas](../../atlas.md): {prose(lead)}", "\n".join(map(prose, listed.split("\n")))]


def with_questions(text: str) -> str:
    """Return the guide, in whose table the code of each question leads to the page of the question."""
    known = {question.CODE for question in comparing.all_questions()}

    def linked(match: re.Match[str]) -> str:
        code = match[1]
        return f"<br>[`{code}`](reference/questions/{code}.md): " if code in known else match[0]

    return _ASKED.sub(linked, text)


def write(folder: Path) -> None:
    """Write the page of the atlas, which holds all it needs, into a folder."""
    pages = {question.CODE: question.page() for question in comparing.all_questions()}
    atlas.write_page(folder / PAGE, atlas.committed(), pages=pages)
