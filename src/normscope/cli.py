"""The command line: demo, study, report, bench, explain. Thin: it reads words, calls the rooms, prints.

Heavy rooms are imported inside the commands, so that help answers at once.
"""

import json
import math
import sys
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope import __version__, _checking
from normscope._errors import NormscopeError, UsageError

if TYPE_CHECKING:
    from normscope._face import Judged

DEMO = ("bn-backward-three-terms", "noisy-batchnorm", "ics-gradient-shift", "landscape-smoothness")

_USAGE: Any = typer.BadParameter.__bases__[0]  # what the parser raises for words that do not fit

app = typer.Typer(
    name="normscope",
    help="Measure what normalization does to your network.",
    epilog="Start with:  normscope demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
study_app = typer.Typer(
    help="Studies: claims about batch normalization, each with a decision rule fixed before the run.",
    epilog="Example:  normscope study run noisy-batchnorm --seeds 10 --out runs/mine",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(study_app, name="study")
bench_app = typer.Typer(
    help="What normscope's parts cost, measured on this machine.",
    epilog="Example:  normscope bench probes --model mlp",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(bench_app, name="bench")
_checking.register(app)

Out = Annotated[Path, typer.Option("--out", help="Folder for records and the report; an unfinished run is resumed.")]
Seeds = Annotated[int, typer.Option(min=1, help="Seeds per arm: the replicates behind every interval.")]
Preset = Annotated[str, typer.Option(help="quick (minutes on two cores) or full (the original's protocol).")]
Data = Annotated[str, typer.Option(help="digits, fashion-mnist, cifar10, or a PATH: folder of idx files, or an npz.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes, one thread each.  [default: the cores]")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"normscope {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure what normalization does to your network."""


@app.command(epilog="Example:  normscope demo --out runs/demo")
def demo(
    out: Out = Path("runs/demo"),
    seeds: Seeds = 10,
    data: Data = "digits",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Answer "what does batch norm do to my gradient?": four studies on real images, and a page of pictures."""
    _run(DEMO, seeds=seeds, preset="quick", data=data, device="cpu", workers=workers, out=out, as_json=as_json)


@study_app.command("list", epilog="Example:  normscope study list --json")
def study_list(as_json: Json = False) -> None:
    """List the studies: slug and claim."""
    from normscope import studies

    found = [{"slug": unit.CODE, "card": unit.CARD, "title": unit.title()} for unit in studies.all()]
    if as_json:
        _print_json(found)
        return
    table = _table("Study", "What it tests")
    for row in found:
        table.add_row(row["slug"], row["title"])
    _console().print(table)


@study_app.command("show", epilog="Example:  normscope study show landscape-smoothness")
def study_show(slug: str, as_json: Json = False) -> None:
    """Show a study's page: claim, method, prediction, threats."""
    from normscope import studies

    _explain(studies.get(slug), as_json)


@study_app.command("run", epilog="Example:  normscope study run noisy-batchnorm --data ~/fashion-mnist --out runs/mine")
def study_run(
    slugs: Annotated[list[str] | None, typer.Argument(metavar="SLUG...", help="Studies to run.")] = None,
    run_all: Annotated[bool, typer.Option("--all", help="Run every study.")] = False,
    preset: Preset = "quick",
    seeds: Seeds = 10,
    data: Data = "digits",
    device: Device = "cpu",
    workers: Workers = None,
    extend: Annotated[
        bool,
        typer.Option("--extend", help="Run as many seeds again where inconclusive, at the level that pays for it."),
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
    _run(chosen, **settings, extend=extend, out=out, as_json=as_json)


@app.command(epilog="Example:  normscope report runs/demo --open")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a folder of runs.")],
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Judge a run's records again and write its page, RUN/report.html."""
    from normscope import _face

    runs = _face.load(run)
    _finish(runs, run, as_json)
    if show:
        webbrowser.open((run / "report.html").resolve().as_uri())


@bench_app.command("probes", epilog="Example:  normscope bench probes --out benchmarks/results/probes.md")
def bench_probes(
    model: Annotated[list[str] | None, typer.Option(help="mlp or vgg; may be repeated.  [default: both]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; five times as many on a fast model.")] = 12,
    case: Annotated[str, typer.Option(help="Only what has this in its name.  [default: all]")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Markdown file to write the table into.")] = None,
    as_json: Json = False,
) -> None:
    """Measure what each probe adds to a training step, in plain steps, beside what other tools cost."""
    from normscope.bench import _page, probes

    try:
        with _progress(as_json) as progress:
            result = probes.measure(model, rounds=rounds, only=case, progress=progress)
    except KeyboardInterrupt:
        typer.echo("normscope: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    if out is not None:
        _write(out, _page.markdown(result))
    if as_json:
        _print_json(result)
        return
    console, table = _console(), _table(*_page.COLUMNS)
    for row in _page.rows(result):
        table.add_row(*row)
    console.print(table)
    peers = _table("other tools", "mlp", "vgg", "trace, conduct")
    for peer in result["peers"]:
        peers.add_row(peer["tool"], peer["mlp"], peer["vgg"], peer["conduct"])
    console.print(peers)
    console.print(_page.conditions(result), highlight=False, soft_wrap=True)
    if out is not None:
        console.print(f"Written to {out}", highlight=False, soft_wrap=True)


@app.command(epilog="Example:  normscope explain noisy-batchnorm")
def explain(
    name: Annotated[str, typer.Argument(metavar="SLUG", help="A study, a probe or a layer.")], as_json: Json = False
) -> None:
    """Explain a study, a probe or a layer: its page."""
    from normscope import _face

    _explain(_face.unit(name), as_json)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: Words after the program's name; the process's own when None.

    A mistake of the user's ends in one line on standard error and exit code 2.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app(args=words, prog_name="normscope", standalone_mode=False)
    except NormscopeError as error:
        typer.echo(f"normscope: {error}", err=True)
        raise SystemExit(2) from None
    except _USAGE as error:
        asked = error.format_message().rstrip()
        asked += "" if asked.endswith((".", "?", "!")) else "."
        if "\n" in asked:  # a group without a command answers with its help
            typer.echo(asked, err=True)
        else:
            path = error.ctx.command_path if error.ctx else "normscope"
            typer.echo(f"normscope: {asked} See `{path} --help`.", err=True)
        raise SystemExit(2) from None
    except typer.Abort:
        raise SystemExit(130) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def _run(slugs: Sequence[str], *, out: Path, as_json: bool, **settings: Any) -> None:
    from normscope import _face

    try:
        with _progress(as_json) as progress:
            runs = _face.run(slugs, out=out, progress=progress, **settings)
    except KeyboardInterrupt:
        typer.echo("normscope: interrupted; run the same command again to go on where it stopped", err=True)
        raise typer.Exit(130) from None
    _finish(runs, out, as_json)


def _finish(runs: Sequence["Judged"], out: Path, as_json: bool) -> None:
    from normscope import _face, report as page

    verdicts = [judged.verdict for judged in runs]
    path = _face.write_report(runs, out / "report.html")
    if as_json:
        from dataclasses import asdict

        _print_json({"report": str(path), "verdicts": [asdict(verdict) for verdict in verdicts]})
        return
    console = _console()
    console.print(page.console(verdicts))
    times = ", ".join(f"{judged.verdict.study} {judged.seconds:.0f} s" for judged in runs if judged.seconds)
    if times:
        console.print(f"Time in the studies: {times}", highlight=False)
    console.print(f"The page with the pictures: {path}", highlight=False, soft_wrap=True)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield what the runner calls with (study, cells done, cells in all): a bar on a terminal, nothing in a pipe."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(study: str, done: int, total: int) -> None:
            if study not in tasks:
                tasks[study] = bars.add_task(study, total=total)
            bars.update(tasks[study], completed=done, total=total)

        yield show


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another --out") from None


def _explain(unit: Any, as_json: bool) -> None:
    page = unit.page()
    if as_json:
        _print_json({"code": unit.CODE, "title": unit.title(), "sources": list(unit.SOURCES), "page": page})
        return
    typer.echo(f"{unit.CODE}\n{unit.title()}")
    for heading, text in page.items():
        typer.echo(f"\n{heading}\n{'-' * len(heading)}\n{text}")
    if unit.SOURCES:
        typer.echo("\nSources\n-------\n" + "\n".join(unit.SOURCES))


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 100)


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(_finite(document), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    """Put null for what JSON has no number for: an unbounded end of an interval."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
