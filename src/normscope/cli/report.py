"""``normscope report``."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normscope._errors import UsageError, one_line
from normscope.cli._condense import condense_comparison
from normscope.cli._print import open_page, print_json, print_lines, wide, written
from normscope.cli._words import Json, path as users_path, path_option, settled
from normscope.cli.compare import print_comparison
from normscope.records.addresses import is_file, shown

if TYPE_CHECKING:
    from normscope.records import Verdict
    from normscope.report import CondensedEvidence
    from normscope.verdicts import Judged


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", parser=users_path, help="A run's or scope's folder, a folder of runs, or a condensed file."
        ),
    ],
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    own: Annotated[
        list[Path] | None,
        path_option("--study", help="File of a study of your own in there; it is executed."),
    ] = None,
    condensed: Annotated[
        Path | None,
        path_option("--condense", help="JSON file to write the verdicts into, without the records."),
    ] = None,
    join: Annotated[
        Path | None,
        path_option(
            "--join", help="Condensed file: its other studies are judged together with the run's in --condense."
        ),
    ] = None,
    markdown: Annotated[
        Path | None,
        path_option("--markdown", help="Markdown file for the verdicts; between its evidence marks, if it has them."),
    ] = None,
    page: Annotated[
        Path | None,
        path_option("--page", help="HTML file to write.  [default: RUN/report.html, or beside the condensed file]"),
    ] = None,
    questions: Annotated[
        Path | None,
        path_option("--questions", help="Markdown file for the questions that people ask, with answers."),
    ] = None,
    network: Annotated[
        str, typer.Option(help="With --condense, of a comparison: what to call the network, as in 'VGG-A on CIFAR-10'.")
    ] = "",
    differs: Annotated[
        str, typer.Option(help="With --network: what alone differs from another network, as in 'depth from NETWORK'.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Judge a run's records again and write its page; or write the page of a scope, or of a condensed file."""
    if own:
        run, page = settled(run), page and settled(page)
        condensed, markdown = condensed and settled(condensed), markdown and settled(markdown)
        _load(own)
    _refuse_alone(run, questions, join, condensed)
    target = page or (run.with_suffix(".html") if is_file(run) else run / "report.html")
    if write := _writer(run):
        _refuse_of_studies(run, study=own, join=join, markdown=markdown, questions=questions)
        write(run, target, as_json, condensed, network, differs)
    elif network or differs:
        raise UsageError(f"--network and --differs are for a comparison, and {run} is none: leave them out")
    elif is_file(run):
        _write_file(run, target, condensed, markdown, questions, as_json)
    else:
        _write_runs(run, target, condensed, join, markdown, as_json)
    if show:
        open_page(target)


def _refuse_alone(run: Path, questions: Path | None, join: Path | None, condensed: Path | None) -> None:
    """Refuse options that lack what they need."""
    if questions is not None and not is_file(run):
        raise UsageError(
            f"--questions takes its numbers from a condensed file, and {run} is none: condense the runs first"
        )
    if join is not None and condensed is None:
        raise UsageError("--join adds the studies of another condensed file to the file of --condense: give that too")


def _refuse_of_studies(run: Path, **options: object) -> None:
    """Refuse options that are for studies, where the folder holds none."""
    if given := [option for option, value in options.items() if value]:
        raise UsageError(f"--{given[0]} is for studies, and {run} holds none: leave it out")


def _load(files: Sequence[Path]) -> None:
    """Execute the files of studies of the user's own, so that their slugs are known."""
    from normscope import studies
    from normscope.usercode import quiet_stdout

    with quiet_stdout():
        for file in files:
            studies.from_file(file)


def _write_runs(
    run: Path, page: Path, condensed: Path | None, join: Path | None, markdown: Path | None, as_json: bool
) -> None:
    """Judge the runs of studies in a folder, write their page and what else was asked for, and print their answers."""
    from normscope import report as pages, verdicts

    kept = None if join is None else pages.read(join)
    runs = verdicts.load(run)
    if condensed is not None or markdown is not None:
        evidence = verdicts.condense(runs)
        if kept is not None:
            evidence = verdicts.joined(evidence, kept)
        if condensed is not None:
            pages.save(condensed, pages.dumps(evidence))
        if markdown is not None:
            pages.save(markdown, pages.into(markdown, evidence))
    write_and_print(runs, page, as_json)


def _writer(run: Path) -> Callable[[Path, Path, bool, Path | None, str, str], None] | None:
    """Return what writes the page of a scope's folder, or of a comparison's; None for studies and condensed files."""
    from normscope import comparing, seen

    if seen.is_scope(run):
        return _write_scope
    return _write_comparison if comparing.is_comparison(run) else None


def _write_comparison(run: Path, page: Path, as_json: bool, condensed: Path | None, network: str, differs: str) -> None:
    """Write the page of a comparison's folder, and the comparison without its records, and print its answers."""
    from normscope.comparing import Comparison

    if condensed is None and (network or differs):
        raise UsageError("--network and --differs name the network in the file of --condense: give that too")
    found = Comparison(run)
    if condensed is not None:
        condense_comparison(found, condensed, network, differs)
    print_comparison(found, as_json, kinds=[], page=found.report(page))


def _write_scope(run: Path, page: Path, as_json: bool, condensed: Path | None, network: str, differs: str) -> None:
    """Write the page of a scope's folder, and print what stands out."""
    from normscope import seen

    _refuse_of_studies(run, condense=condensed, network=network, differs=differs)
    found = seen.read(run)
    path = seen.write(page, found)
    if as_json:
        print_json({"report": shown(path)} | seen.document(found))
        return
    print_lines(*seen.summary_of(found).splitlines(), "", f"The page with the pictures: {shown(path)}")


def _write_file(
    run: Path, page: Path, condensed: Path | None, markdown: Path | None, questions: Path | None, as_json: bool
) -> None:
    """Write the page of a condensed file, and what else was asked for, and print its answers."""
    from normscope import atlas, report as pages, studies

    evidence = pages.read(run)  # a file that is no condensed file is refused as such
    if condensed is not None:
        raise UsageError(f"{run} is a condensed file already: give --condense the folder of the runs")
    if questions is not None:
        said = {row.code: row.answer for row in atlas.committed().rows}
        pages.write_questions(questions, studies.texts().questions, evidence, said)
    _write_condensed(evidence, page, markdown, as_json)


def _write_condensed(evidence: "CondensedEvidence", page: Path, markdown: Path | None, as_json: bool) -> None:
    """Write the page of a condensed file, and its Markdown if asked for, and print its answers."""
    from normscope import report as pages, verdicts

    text = None if markdown is None else pages.into(markdown, evidence)  # a file with one mark is refused first
    path = verdicts.write_condensed(evidence, page)
    if markdown is not None and text is not None:
        pages.save(markdown, text)
    found = [study.verdict for study in evidence.studies]
    if as_json:
        written_to = {"report": shown(path)} | ({} if markdown is None else {"markdown": str(markdown)})
        print_json(written_to | {"verdicts": found})
        return
    _print_answers(found, path)
    print_lines(*written(markdown))


def _print_answers(verdicts: "Sequence[Verdict]", path: Path, *lines: str) -> None:
    """Print the table of answers, how many there are of each, and where the page is."""
    from normscope import report as pages

    wide().print(pages.console(verdicts))
    print_lines(pages.tally(verdicts), *lines, f"The page with the pictures: {shown(path)}")


def write_and_print(
    runs: Sequence["Judged"], page: Path, as_json: bool, failed: Mapping[str, str] | None = None
) -> None:
    """Write the page of runs that were judged together, and print their answers.

    Args:
        runs: The runs.
        page: The HTML file to write.
        as_json: Whether a JSON document is printed.
        failed: What went wrong with studies that are not among the runs, by slug.
    """
    from normscope.verdicts import write_report

    verdicts = [judged.verdict for judged in runs]
    path = write_report(runs, page)
    if as_json:
        seconds = {judged.verdict.study: round(judged.seconds, 1) for judged in runs if judged.seconds}
        document = {"report": shown(path), "verdicts": verdicts, "seconds": seconds}
        print_json(document | ({"failed": failed} if failed else {}))
        return
    total = sum(judged.seconds for judged in runs)
    times = ", ".join(f"{judged.verdict.study} {judged.seconds:.0f} s" for judged in runs if judged.seconds)
    if times:
        times = f"Time in the studies: {times}{f'; {total:.0f} s in all' if len(runs) > 1 else ''}"
    _print_answers(verdicts, path, *filter(None, [times]))
    for slug, reason in (failed or {}).items():
        typer.echo(f"normscope: {one_line(f'{slug} failed and is not in there: {reason}')}", err=True)
