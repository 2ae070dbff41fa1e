"""``normscope compare``."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope._errors import UsageError
from normscope.cli._print import open_page, print_json, print_lines, print_tables
from normscope.cli._progress import interruptible, lines_of_progress, progress_bar, status_line
from normscope.cli._shards import shard_ending
from normscope.cli._words import MOST_BATCHES, MOST_SEEDS, Executor, Json, Out, Shard, Workers, settled
from normscope.records.addresses import shown

if TYPE_CHECKING:
    from normscope.comparing import Comparison

#: More steps or learning rates than these are a slip of the hand.
MOST_STEPS = 10_000_000
MOST_RATES = 1_000


Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE:FACTORY | NAME=FILE:FACTORY...",
        help="A function that makes the training set-up anew and returns an ns.Case, or a tuple of its arguments; "
        "or several such functions, each an arm with a name.",
    ),
]


def compare(
    targets: Targets = None,
    arms: Annotated[
        str | None, typer.Option(help="Arms, separated by commas.  [default: own,none]  --list shows all.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=MOST_SEEDS, help="Seeds an arm, the replicates.  [default: 5]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=2, max=MOST_STEPS, help="Training steps of a run.  [default: 200]")
    ] = None,
    rates: Annotated[str, typer.Option(help="Factors of the learning rate, such as 0.3,1,3.")] = "1",
    budget: Annotated[
        str | None, typer.Option(help="Time it may take, such as 20min: steps, seeds and probes are chosen to fit.")
    ] = None,
    questions: Annotated[
        str | None, typer.Option(help="Codes of questions, separated by commas.  [default: all]  --list shows all.")
    ] = None,
    batches: Annotated[int, typer.Option(min=1, max=MOST_BATCHES, help="Batches of an evaluation.")] = 8,
    out: Out = Path("runs/compare"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete a comparison of another configuration that lies in the folder.")
    ] = False,
    workers: Workers = None,
    executor: Executor = None,
    shard: Shard = None,
    export: Annotated[
        str | None, typer.Option(help="Write these into OUT/export: pdf,svg (figures), csv, latex (tables).")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List arms and questions, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Compare your network with its norms and without them, or with others, seed by seed, and answer in sentences."""
    if listed:
        _list(as_json)
        return
    from normscope.comparing import check_kinds

    source = sources(targets or [])
    kinds = check_kinds(_split(export)) if export is not None else []
    settings = {
        "arms": None if arms is None else _split(arms),
        "seeds": seeds,
        "steps": steps,
        "rates": _numbers(rates),
        "budget": budget,
        "questions": None if questions is None else _split(questions),
        "batches": batches,
        "fresh": fresh,
        "workers": workers,
        "executor": executor,
        "shard": shard,
    }
    run_and_print(source, out, as_json, kinds=kinds, show=show, **settings)


def run_and_print(
    source: object, out: Path, as_json: bool, *, kinds: list[str], show: bool = False, **settings: object
) -> None:
    """Run a comparison, write its page and print its answers.

    Args:
        source: As ``normscope.compare`` takes it.
        out: Folder of the run and of the page.
        as_json: Whether a JSON document is printed.
        kinds: What is exported.
        show: Whether the page is opened in the browser.
        settings: As ``normscope.compare`` takes them.
    """
    found, page = compared(source, out, as_json, **settings)
    print_comparison(found, as_json, kinds=kinds, page=page, show=show)


def compared(source: object, out: Path, as_json: bool, **settings: object) -> "tuple[Comparison, Path]":
    """Run a comparison with its progress in the terminal, and write its page.

    Args:
        source: As ``normscope.compare`` takes it.
        out: Folder of the run and of the page.
        as_json: Whether a JSON document is printed, and no progress.
        settings: As ``normscope.compare`` takes them.

    Returns:
        The comparison, and the page.
    """
    from normscope import comparing
    from normscope.usercode import quiet_stdout

    out, advice = settled(out), "run the same command again to go on where it stopped"
    with shard_ending(out, as_json), interruptible(advice):
        with progress_bar(as_json) as bars, quiet_stdout(), _notes_told(comparing.ComparisonWarning, as_json):
            progress = bars or (None if as_json else lines_of_progress())
            found = comparing.compare(source, out=out, progress=progress, **settings)  # type: ignore[arg-type]
        with status_line(as_json) as show_status:
            if show_status is not None:
                show_status("judging, and drawing the page")
            return found, found.report()


@contextmanager
def _notes_told(kind: type[Warning], quiet: bool) -> Iterator[None]:
    """Write notes on the arms as lines on standard error, before anything runs; they stand with the answers too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if quiet else "always", kind)
        show = warnings.showwarning

        def tell(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, kind):
                typer.echo(f"normscope: {message}", err=True)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = tell
        yield


def print_comparison(found: "Comparison", as_json: bool, *, kinds: list[str], page: Path, show: bool = False) -> None:
    """Print the answers of a comparison, and what was written.

    Args:
        found: The comparison.
        as_json: Whether a JSON document is printed.
        kinds: What is exported, into the folder ``export`` of the run.
        page: The HTML file that was written.
        show: Whether the page is opened in the browser.
    """
    exported = found.export(found.path / "export", kinds) if kinds else []
    if as_json:
        print_json({"report": shown(page), "exported": [shown(each) for each in exported]} | found.document())
    else:
        print_lines(*str(found).splitlines(), "", f"The page with the pictures: {shown(page)}")
        if exported:
            print_lines(f"Exported into {shown(found.path / 'export')}: {len(exported)} files")
    if show:
        open_page(page)


def sources(targets: list[str]) -> str | Mapping[str, str]:
    """Return one factory, or several by the name of the arm.

    Raises:
        UsageError: None is given, names are missing among several, or a name stands twice.
    """
    if not targets:
        raise UsageError(
            "give FILE:FACTORY, such as train.py:make_case; `normscope example > train.py` writes a file to begin with"
        )
    named = [target.partition("=") if _has_name(target) else ("", "", target) for target in targets]
    if len(targets) == 1 and not named[0][1]:
        return targets[0]
    if any(not name for name, _, _ in named):
        raise UsageError("several factories are arms: name each, such as bn=train.py:with_bn plain=train.py:without")
    found = {name: target for name, _, target in named}
    if len(found) < len(named):
        raise UsageError("two arms have one name: give each its own")
    return found


def _has_name(target: str) -> bool:
    """Return whether a name stands before the first equals sign: ``bn=train.py:make``, not ``runs/lr=1/t.py:make``."""
    return target.partition("=")[1] == "=" and target.partition("=")[0].replace("-", "_").isidentifier()


def _split(words: str) -> list[str]:
    return [part.strip() for part in words.split(",") if part.strip()]


def _numbers(words: str) -> list[float]:
    try:
        if len(found := [float(part) for part in _split(words)]) <= MOST_RATES:
            return found
        raise UsageError(f"--rates takes {MOST_RATES} factors at most, got {len(found)}")
    except ValueError:
        raise UsageError(f"--rates are numbers separated by commas, such as 0.3,1,3; got {words!r}") from None


def _list(as_json: bool) -> None:
    from normscope.comparing import all_questions
    from normscope.surgery import ARMS

    words = {"first": "with its norms", "second": "without norms"}
    asked = [(unit.CODE, unit.ASKS.format(**words).capitalize()) for unit in all_questions()]
    if as_json:
        print_json({"arms": dict(ARMS), "questions": dict(asked)})
        return
    print_tables([(("Arm", "What it is"), list(ARMS.items())), (("Question", "It asks"), asked)])
