"""``normscope study``: list, show, run, new, calibrate."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope._errors import UsageError
from normscope.cli._answers import committed_answers, print_study
from normscope.cli._claims import list_claims, run_claims
from normscope.cli._print import print_json, print_lines, print_tables
from normscope.cli._progress import ending, interruptible, progress_bar
from normscope.cli._shards import shard_ending
from normscope.cli._words import (
    MOST_ROUNDS,
    MOST_SEEDS,
    Data,
    Device,
    Executor,
    Json,
    Out,
    Preset,
    Shard,
    Workers,
    group,
    path as users_path,
    settled,
)
from normscope.cli.compare import MOST_STEPS
from normscope.cli.report import write_and_print

if TYPE_CHECKING:
    from normscope.studies import Rate

#: Four studies that show what studies are, in a few minutes.
DEMO = ("bn-backward-three-terms", "noisy-batchnorm", "ics-gradient-shift", "landscape-smoothness")

app = group(
    "Studies: claims about batch normalization, each with a decision rule fixed before the run.",
    "normscope study run noisy-batchnorm --seeds 10 --out runs/mine",
)


@app.command("list", epilog="Example:  normscope study list --json")
def list_studies(
    on_a_case: Annotated[
        bool, typer.Option("--case", help="List which can be run on a network of your own, and why others cannot.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the studies: what each claims, its answer in the evidence of this version, and the effect."""
    from normscope import studies

    if on_a_case:
        list_claims(as_json)
        return
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
    run_demo: Annotated[bool, typer.Option("--demo", help="Run four studies that show what studies are.")] = False,
    preset: Preset = "quick",
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_SEEDS,
            help="Seeds per arm: the replicates behind every interval.  [default: 10, or 5 with --case]",
        ),
    ] = None,
    case: Annotated[
        str | None,
        typer.Option(
            metavar="FILE:FACTORY",
            help="Ask the claims of a network of your own, by the questions of `normscope compare`; "
            "`normscope study list --case` shows which studies can.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=2, max=MOST_STEPS, help="Training steps of a run with --case.  [default: 200]")
    ] = None,
    data: Data = None,
    device: Device = "cpu",
    workers: Workers = None,
    executor: Executor = None,
    shard: Shard = None,
    extend: Annotated[
        bool,
        typer.Option("--extend", help="Run as many seeds again where unclear, at the level that pays for it."),
    ] = False,
    out: Out = Path("runs/study"),
    as_json: Json = False,
) -> None:
    """Run studies and judge them; cells that are complete in the folder are not run again."""
    from normscope import studies

    if [run_all, run_demo, bool(slugs)].count(True) != 1:
        raise UsageError("name the studies to run, or say --all or --demo; `normscope study list` shows them")
    where = {"workers": workers, "executor": executor, "shard": shard}
    if case is not None:
        studies_alone = {"--demo": run_demo, "--preset": preset != "quick", "--data": data, "--extend": extend}
        studies_alone["--device"] = device != "cpu"
        if given := [option for option, said in studies_alone.items() if said]:
            raise UsageError(f"{', '.join(given)} cannot be said with --case: the set-up has its own network and data")
        run_claims(None if run_all else slugs, case, out, as_json, seeds=seeds, steps=steps, **where)
        return
    if steps is not None:
        raise UsageError("--steps belongs to --case FILE:FACTORY; the steps of a study are its preset's")
    chosen = [unit.CODE for unit in studies.all()] if run_all else list(DEMO if run_demo else slugs or ())
    settings = {"seeds": 10 if seeds is None else seeds, "preset": preset, "data": data, "device": device, **where}
    run_and_report(chosen, **settings, extend=extend, out=out, as_json=as_json)


@app.command(epilog="Example:  normscope study new my_claim.py && normscope study run my_claim.py")
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE.py", parser=users_path, help="A file that does not exist yet.")],
) -> None:
    """Write a template for a study of your own, which runs as it stands."""
    from normscope import studies

    written = studies.new(file)
    print_lines(f"Wrote {written}. Run it:  normscope study run {written}")


@app.command(epilog="Example:  normscope study calibrate --studies 200 --seeds 5 --seeds 10")
def calibrate(
    count: Annotated[
        int, typer.Option("--studies", min=20, max=MOST_ROUNDS * 10, help="Simulated studies for each rule and truth.")
    ] = 1000,
    seeds: Annotated[
        list[int] | None,
        typer.Option(min=2, max=MOST_SEEDS, help="Seeds of each; may be given several times. [default: 3 5 10 20]"),
    ] = None,
    executor: Executor = None,
    as_json: Json = False,
) -> None:
    """Simulate studies whose truth is known, and show how often each word is false, and the power of the rules."""
    from normscope import studies

    numbers = tuple(seeds or studies.calibration.SEEDS)
    with progress_bar(as_json) as bars:
        step = None if bars is None else lambda done, total: bars("simulated studies", done, total)
        rates = list(studies.calibrate(studies=count, seeds=numbers, executor=executor, progress=step))
    if as_json:
        document = {"studies": count, "rates": [rate._asdict() for rate in rates], "off": sum(r.off for r in rates)}
        print_json(document)
        return
    columns = ("Rule", "Noise", "Seeds", "False holds", "False opposite", "False no effect", "Power")
    print_tables(
        [(columns, _calibration_rows(rates))],
        f"Shares of {count} simulated studies, each word at the truth where it is false most often; 0.025 are allowed "
        "(0.05 for any false word among claims judged together), and a share beyond that and beyond chance is marked "
        "'above'. The margin is one standard deviation of what a seed adds; power is that at twice the margin.",
    )


def _calibration_rows(rates: "Iterable[Rate]") -> list[tuple[str, ...]]:
    """Return a row for each rule, noise and number of seeds, with the worst false rate of each word."""
    cases: dict[tuple[str, str, str], list[Rate]] = {}
    for rate in rates:
        cases.setdefault((rate.rule, rate.noise, str(rate.seeds)), []).append(rate)
    rows: list[tuple[str, ...]] = []
    for case, found in cases.items():
        cells = []
        for word in ("holds", "opposite", "no effect that matters"):
            false = [rate for rate in found if rate.word in (word, "any false word") and rate.allowed == rate.allowed]
            worst = max(false, key=lambda rate: rate.share, default=None)
            cells.append("" if worst is None else f"{worst.share:.3f}{' above' if worst.off else ''}")
        power = max((rate.share for rate in found if rate.allowed != rate.allowed), default=None)
        rows.append((*case, *cells, "" if power is None else f"{power:.2f}"))
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
    from normscope.usercode import quiet_stdout

    out, count = settled(out), len(set(slugs))
    advice = "run the same command again to go on where it stopped"
    with (
        shard_ending(out, as_json),
        interruptible(advice),
        progress_bar(as_json, studies=count) as bars,
        quiet_stdout(),
    ):
        ended = None if as_json else ending(bars, count)
        runs, failed = verdicts.run(slugs, out=out, progress=bars, ended=ended, **settings)
    write_and_print(runs, out / "report.html", as_json, failed)
    if failed:
        raise typer.Exit(1)
