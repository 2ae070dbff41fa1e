"""``normscope atlas``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope.cli._print import open_page, print_json, print_lines, written
from normscope.cli._words import Json, path as users_path, path_option
from normscope.records.addresses import save, shown

if TYPE_CHECKING:
    from normscope.atlas import Atlas, KeptComparison


def atlas(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE...",
            parser=users_path,
            help="Comparisons of your own, from `normscope report RUN --condense FILE`, to stand beside the networks.",
        ),
    ] = None,
    page: Annotated[Path, path_option("--page", help="HTML file to write.  [default: runs/atlas.html]")] = Path(
        "runs/atlas.html"
    ),
    markdown: Annotated[
        list[Path] | None,
        path_option("--markdown", help="Markdown file with marks for parts of the atlas, which are written anew."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Show what comparisons of many networks answer, question by question, and your own beside them."""
    from normscope import atlas as room, comparing

    found, own = room.committed(), [room.read(file) for file in files or []]
    pages = {question.CODE: question.page() for question in comparing.all_questions()}
    texts = [(file, room.into(file, found)) for file in markdown or []]  # a page without marks is refused first
    for file, text in texts:
        save(file, text)
    path = room.write_page(page, found, own=own, pages=pages)
    if as_json:
        pages_of_own = {"markdown": [shown(file) for file in markdown]} if markdown else {}
        print_json({"page": shown(path), **pages_of_own, **_document(found, own)})
    else:
        print_lines(*_lines(found, own), f"The page with the pictures: {shown(path)}")
        print_lines(*(line for file in markdown or [] for line in written(file)))
    if show:
        open_page(path)


def _lines(found: "Atlas", own: list["KeptComparison"]) -> list[str]:
    """Return the questions with their sentences, and below each what a network of one's own answers."""
    from normscope.atlas import answers_of
    from normscope.report import terminal

    answers = [(each, {answer.question.code: answer for answer in answers_of(each)}) for each in own]
    lines = [f"The networks: {'; '.join(each.network.title for each in found.networks)}.", ""]
    for row in found.rows:
        lines += [f"{row.number:2d}. {row.asks}", f"    {terminal(row.sentence)}"]
        for each, by_code in answers:
            if row.code in by_code:
                answer = by_code[row.code]
                beside = found.beside(row.code, answer.verdict.outcome, each.pair)
                lines.append(f"    Yours, {each.network.title}: {' '.join(filter(None, [answer.sentence, beside]))}")
    return [*lines, ""]


def _document(found: "Atlas", own: list["KeptComparison"]) -> dict[str, Any]:
    """Return the atlas as values for JSON."""
    from normscope.atlas import answers_of

    def answers(kept: "KeptComparison") -> list[dict[str, Any]]:
        return [
            {"question": each.question.code, "sentence": each.sentence, "verdict": each.verdict}
            for each in answers_of(kept)
        ]

    networks = [*found.networks, *found.variants, *own]
    return {
        "questions": [{"question": row.code, "asks": row.asks, "sentence": row.sentence} for row in found.rows],
        "networks": [{"network": each.network, "own": each in own, "answers": answers(each)} for each in networks],
    }
