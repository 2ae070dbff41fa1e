"""``normscope study``: list, show, run, new, calibrate."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope._errors import UsageError
from normscope.cli._answers import committed_answers, print_study
from normscope.cli._print import print_json, print_tables
from normscope.cli._progress import ending, interruptible, progress_bar
from normscope.cli._words import Data, Device, Json, Out, Preset, Seeds, Workers, group
from normscope.cli.report import write_and_print

if TYPE_CHECKING:
    from normscope.studies import Rate

app = group(
    "Studies: claims about batch normalization, each with a decision rule fixed before the run.",
    "normscope study run noisy-batchnorm --seeds 10 --out runs/mine",
)


@app.command("list", epilog="Example:  normscope study list --json")
def list_studies(as_json: Json = False) -> None:
    """List the studies: what each claims, its answer in the evidence of this version, and the effect."""
    from normscope import studies

    units = studies.all()
    answers, missing = committed_answers()
    if as_json:
        print_json(
            [
                {"slug": unit.CODE, "card": unit.CARD, "title": unit.title()} | answers.get(unit.CODE, {})
                for unit in units
            ]
        )
        return
    rows = [
        (unit.CODE, unit.CLAIM, *(answers.get(unit.CODE, {}).get(key) or "–" for key in ("standing", "effect")))
        for unit in units
    ]
    columns = ("Study", "Claim", "Answer", "Effect")
    tables = [(columns, rows)] if answers else [(columns[:2], [row[:2] for row in rows])]
    print_tables(tables, *filter(None, [missing]))


@app.command(epilog="Example:  normscope study show landscape-smoothness")
def show(slug: str, as_json: Json = False) -> None:
    """Show a study's page: its answer in the evidence of this version, then claim, method, prediction, threats."""
    from normscope import studies

    print_study(studies.get(slug), as_json)


@app.command(epilog="Example:  normscope study run noisy-batchnorm --data ~/fashion-mnist --out runs/mine")
def run(
    slugs: Annotated[
        list[str] | None, typer.Argument(metavar="SLUG...", help="Studies to run; FILE.py for your own.")
    ] = None,
    run_all: Annotated[bool, typer.Option("--all", help="Run every study.")] = False,
    preset: Preset = "quick",
    seeds: Seeds = 10,
    data: Data = "digits",
    device: Device = "cpu",
    workers: Workers = None,
    extend: Annotated[
        bool,
        typer.Option("--extend", help="Run as many seeds again where unclear, at the level that pays for it."),
    ] = False,
    out: Out = Path("runs/study"),
    as_json: Json = False,
) -> None:
    """Run studies and judge them; cells that are complete in the folder are not run again."""
    from normscope import studies

    if run_all == bool(slugs):
        raise UsageError("name the studies to run, or say --all; `normscope study list` shows them")
    chosen = [unit.CODE for unit in studies.all()] if run_all else list(slugs or ())
    settings = {"seeds": seeds, "preset": preset, "data": data, "device": device, "workers": workers}
    run_and_report(chosen, **settings, extend=extend, out=out, as_json=as_json)


@app.command(epilog="Example:  normscope study new my_claim.py && normscope study run my_claim.py")
def new(file: Annotated[Path, typer.Argument(metavar="FILE.py", help="A file that does not exist yet.")]) -> None:
    """Write a template for a study of your own, which runs as it stands."""
    from normscope import studies

    written = studies.new(file)
    typer.echo(f"Wrote {written}. Run it:  normscope study run {written}")


@app.command(epilog="Example:  normscope study calibrate --studies 200 --seeds 5")
def calibrate(
    count: Annotated[int, typer.Option("--studies", min=20, help="Simulated studies for each rule and truth.")] = 1000,
    seeds: Annotated[int, typer.Option(min=2, help="Seeds of each.")] = 10,
    as_json: Json = False,
) -> None:
    """Simulate studies whose truth is known, and show how often the verdict engine is wrong, and its power."""
    from normscope import studies

    with progress_bar(as_json) as bars:
        step = None if bars is None else lambda done, total: bars("simulated studies", done, total)
        rates = list(studies.calibrate(studies=count, seeds=seeds, progress=step))
    if as_json:
        print_json({"rates": [rate._asdict() for rate in rates], "off": sum(rate.off for rate in rates)})
        return
    columns = ("Rule", "Noise", "No effect", "At the margin", "Allowed", "Power at twice the margin")
    print_tables(
        [(columns, _calibration_rows(rates))],
        f"Shares of {count} simulated studies of {seeds} seeds that came out supported. The margin is one standard "
        "deviation of what a seed adds.",
    )


def _calibration_rows(rates: "Iterable[Rate]") -> list[tuple[str, ...]]:
    """Return a row for each rule and noise, with its rates under the three truths."""
    by_case: dict[tuple[str, str], dict[str, Rate]] = {}
    for rate in rates:
        by_case.setdefault((rate.rule, rate.noise), {})[rate.truth] = rate
    rows: list[tuple[str, ...]] = []
    for case, by_truth in by_case.items():
        none, at, twice = (by_truth[truth] for truth in ("no effect", "at the margin", "twice the margin"))
        margin = f"{at.share:.3f} ({at.low:.3f} to {at.high:.3f}){' above' if at.off else ''}"
        rows.append((*case, f"{none.share:.3f}", margin, f"{at.allowed:.3f}", f"{twice.share:.2f}"))
    return rows


def run_and_report(slugs: Sequence[str], *, out: Path, as_json: bool, **settings: Any) -> None:
    """Run studies, judge them together, write the page and print the verdicts; exit code 1 if a study failed.

    Args:
        slugs: The studies.
        out: Folder of the runs and of the page.
        as_json: Whether a JSON document is printed.
        settings: As ``normscope.studies.run`` takes them.
    """
    from normscope import verdicts

    count = len(set(slugs))
    advice = "run the same command again to go on where it stopped"
    with interruptible(advice), progress_bar(as_json, studies=count) as bars:
        ended = None if as_json else ending(bars, count)
        runs, failed = verdicts.run(slugs, out=out, progress=bars, ended=ended, **settings)
    write_and_print(runs, out / "report.html", as_json, failed)
    if failed:
        raise typer.Exit(1)
