"""``normscope report``."""

import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normscope._errors import UsageError
from normscope.cli._print import print_json, wide, written
from normscope.cli._words import Json

if TYPE_CHECKING:
    from normscope.verdicts import Judged


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, a folder of runs, or a condensed file.")],
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    own: Annotated[
        list[Path] | None, typer.Option("--study", help="File of a study of your own in there; it is executed.")
    ] = None,
    condensed: Annotated[
        Path | None, typer.Option("--condense", help="JSON file to write the verdicts into, without the records.")
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", help="Markdown file for the verdicts; between its evidence marks, if it has them."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a run's records again and write its page, RUN/report.html; or a condensed file's verdicts as Markdown."""
    from normscope import report as pages, studies, verdicts

    for file in own or ():
        studies.from_file(file)
    if run.is_file():
        pages.read(run)  # a file that is no condensed file is refused as such
        if markdown is None or condensed is not None or show:
            raise UsageError(
                f"{run} holds verdicts without records: say --markdown FILE, or give the folder of the runs"
            )
        _write_markdown(run, markdown, as_json)
        return
    runs = verdicts.load(run)
    if condensed is not None or markdown is not None:
        evidence = verdicts.condense(runs)
        if condensed is not None:
            pages.save(condensed, pages.dumps(evidence))
        if markdown is not None:
            pages.save(markdown, pages.into(markdown, evidence))
    write_and_print(runs, run, as_json)
    if show:
        webbrowser.open((run / "report.html").resolve().as_uri())


def _write_markdown(condensed: Path, markdown: Path, as_json: bool) -> None:
    """Write a condensed file's verdicts as Markdown, and print them."""
    from normscope import report as pages

    evidence = pages.read(condensed)
    pages.save(markdown, pages.into(markdown, evidence))
    verdicts = [study.verdict for study in evidence.studies]
    if as_json:
        print_json({"markdown": str(markdown), "verdicts": verdicts})
        return
    console = wide()
    console.print(pages.console(verdicts))
    for line in written(markdown):
        console.print(line, highlight=False, soft_wrap=True)


def write_and_print(
    runs: Sequence["Judged"], out: Path, as_json: bool, failed: Mapping[str, str] | None = None
) -> None:
    """Write the page of runs that were judged together, and print their verdicts.

    Args:
        runs: The runs.
        out: Folder of the page.
        as_json: Whether a JSON document is printed.
        failed: What went wrong with studies that are not among the runs, by slug.
    """
    from normscope import report as pages
    from normscope.verdicts import write_report

    verdicts = [judged.verdict for judged in runs]
    path = write_report(runs, out / "report.html")
    if as_json:
        seconds = {judged.verdict.study: round(judged.seconds, 1) for judged in runs if judged.seconds}
        document = {"report": str(path), "verdicts": verdicts, "seconds": seconds}
        print_json(document | ({"failed": failed} if failed else {}))
        return
    console = wide()
    console.print(pages.console(verdicts))
    total = sum(judged.seconds for judged in runs)
    times = ", ".join(f"{judged.verdict.study} {judged.seconds:.0f} s" for judged in runs if judged.seconds)
    if times:
        times += f"; {total:.0f} s in all" if len(runs) > 1 else ""
        console.print(f"Time in the studies: {times}", highlight=False)
    console.print(f"The page with the pictures: {path}", highlight=False, soft_wrap=True)
    for slug, reason in (failed or {}).items():
        typer.echo(f"normscope: {slug} failed and is not in there: {reason}", err=True)
