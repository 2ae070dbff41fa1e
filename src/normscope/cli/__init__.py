"""The command line: demo, study, report, bench, explain. Thin: it reads words, calls the rooms, prints.

Heavy rooms are imported inside the commands, so that help answers at once.
"""

import sys
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope import __version__
from normscope._errors import NormscopeError, UsageError
from normscope.cli import check as _check
from normscope.cli._print import plain_table, print_json, say_page, wide, write_text
from normscope.cli._progress import ending, progress_bar

if TYPE_CHECKING:
    from normscope.report import Evidence
    from normscope.verdicts import Judged

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
_check.register(app)

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
        print_json(found)
        return
    table = plain_table("Study", "What it tests")
    for row in found:
        table.add_row(row["slug"], row["title"])
    wide().print(table)


@study_app.command("show", epilog="Example:  normscope study show landscape-smoothness")
def study_show(slug: str, as_json: Json = False) -> None:
    """Show a study's page: claim, method, prediction, threats."""
    from normscope import studies

    say_page(studies.get(slug), as_json)


@study_app.command("run", epilog="Example:  normscope study run noisy-batchnorm --data ~/fashion-mnist --out runs/mine")
def study_run(
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


@study_app.command("new", epilog="Example:  normscope study new my_claim.py && normscope study run my_claim.py")
def study_new(file: Annotated[Path, typer.Argument(metavar="FILE.py", help="A file that does not exist yet.")]) -> None:
    """Write a template for a study of your own, which runs as it stands."""
    from normscope import studies

    made = studies.new(file)
    typer.echo(f"Wrote {made}. Run it:  normscope study run {made}")


@study_app.command("calibrate", epilog="Example:  normscope study calibrate --studies 200 --seeds 5")
def study_calibrate(
    count: Annotated[int, typer.Option("--studies", min=20, help="Simulated studies for each rule and truth.")] = 1000,
    seeds: Annotated[int, typer.Option(min=2, help="Seeds of each.")] = 10,
    as_json: Json = False,
) -> None:
    """Simulate studies whose truth is known, and show how often the verdict engine is wrong, and its power."""
    from normscope.studies import calibrate

    with progress_bar(as_json) as progress:
        told = None if progress is None else lambda done, total: progress("simulated studies", done, total)
        rates = list(calibrate(studies=count, seeds=seeds, progress=told))
    if as_json:
        print_json({"rates": [rate._asdict() for rate in rates], "off": sum(rate.off for rate in rates)})
    else:
        table = plain_table("Rule", "Noise", "No effect", "At the margin", "Allowed", "Power at twice the margin")
        grouped: dict[tuple[str, str], dict[str, Any]] = {}
        for rate in rates:
            grouped.setdefault((rate.rule, rate.noise), {})[rate.truth] = rate
        for (rule, noise), by_truth in grouped.items():
            none, at, twice = (by_truth[truth] for truth in ("no effect", "at the margin", "twice the margin"))
            margin = f"{at.share:.3f} ({at.low:.3f} to {at.high:.3f}){' above' if at.off else ''}"
            table.add_row(rule, noise, f"{none.share:.3f}", margin, f"{at.allowed:.3f}", f"{twice.share:.2f}")
        wide().print(table)
        typer.echo(
            f"Shares of {count} simulated studies of {seeds} seeds that came out supported. The margin is one standard "
            "deviation of what a seed adds."
        )


@app.command(epilog="Example:  normscope report runs/demo --open")
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
    from normscope import report as page, studies, verdicts as judging

    for file in own or ():
        studies.from_file(file)
    if run.is_file():
        if markdown is None or condensed is not None or show:
            raise UsageError(
                f"{run} holds verdicts without records: say --markdown FILE, or give the folder of the runs"
            )
        evidence = page.read(run)
        page.save(markdown, page.into(markdown, evidence))
        _say_condensed(evidence, markdown, as_json)
        return
    runs = judging.load(run)
    if condensed is not None or markdown is not None:
        evidence = judging.condense(runs)
        if condensed is not None:
            page.save(condensed, page.dumps(evidence))
        if markdown is not None:
            page.save(markdown, page.into(markdown, evidence))
    _finish(runs, run, as_json)
    if show:
        webbrowser.open((run / "report.html").resolve().as_uri())


def _say_condensed(evidence: "Evidence", written: Path, as_json: bool) -> None:
    """Print the verdicts of a condensed file, as those of runs are printed."""
    from normscope import report as page

    verdicts = [study.verdict for study in evidence.studies]
    if as_json:
        print_json({"markdown": str(written), "verdicts": [asdict(verdict) for verdict in verdicts]})
        return
    wide().print(page.console(verdicts))
    wide().print(f"Written to {written}", highlight=False, soft_wrap=True)


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
        with progress_bar(as_json) as progress:
            result = probes.measure(model, rounds=rounds, only=case, progress=progress)
    except KeyboardInterrupt:
        typer.echo("normscope: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    if out is not None:
        write_text(out, _page.markdown(result))
    if as_json:
        print_json(result)
        return
    console, table = wide(), plain_table(*_page.COLUMNS)
    for row in _page.rows(result):
        table.add_row(*row)
    console.print(table)
    peers = plain_table("other tools", "mlp", "vgg", "trace, conduct")
    for peer in result["peers"]:
        peers.add_row(peer["tool"], peer["mlp"], peer["vgg"], peer["conduct"])
    console.print(peers)
    console.print(_page.conditions(result), highlight=False, soft_wrap=True)
    if out is not None:
        console.print(f"Written to {out}", highlight=False, soft_wrap=True)


@bench_app.command("layers", epilog="Example:  normscope bench layers --out benchmarks/results/layers.md")
def bench_layers(
    only: Annotated[str, typer.Option(help='Only shapes with this in them: "(128, 64)".  [default: all]')] = "",
    allocator: Annotated[
        list[str] | None, typer.Option(help="recycled or default; may be repeated.  [default: both]")
    ] = None,
    compiled: Annotated[bool, typer.Option(help="Also beside torch.compile, which takes minutes.")] = True,
    whole: Annotated[bool, typer.Option(help="Also whole training steps, and peak memory.")] = True,
    device: Annotated[str, typer.Option(help="cpu, or cuda for the GPU kernels.")] = "cpu",
    out: Annotated[Path | None, typer.Option("--out", help="Markdown file to write the tables into.")] = None,
    as_json: Json = False,
) -> None:
    """Measure batch norm with ReLU, forward and backward, beside torch's. Leave the machine alone meanwhile."""
    from normscope.bench import _gpu_page, _layers_page, layers

    try:
        with progress_bar(as_json) as progress:
            if device == "cuda":
                result: Any = _gpu_page.measure(progress)
                tables, text, said = _gpu_page.terminal(result), _gpu_page.markdown(result), result["device"]
            elif device == "cpu":
                result = layers.measure(
                    only=only,
                    allocators=allocator or layers.ALLOCATORS,
                    compiled=compiled,
                    whole=whole,
                    progress=progress,
                )
                tables, text = _layers_page.terminal(result), _layers_page.markdown(result)
                said = _layers_page.conditions(result)
            else:
                raise UsageError(f"--device is cpu or cuda: got {device!r}")
    except KeyboardInterrupt:
        typer.echo("normscope: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    if out is not None:
        write_text(out, text)
    if as_json:
        print_json(result)
        return
    console = wide()
    for columns, found in tables:
        table = plain_table(*columns)
        for row in found:
            table.add_row(*row)
        console.print(table)
    console.print(said, highlight=False, soft_wrap=True)
    if out is not None:
        console.print(f"Written to {out}", highlight=False, soft_wrap=True)


@app.command(epilog="Example:  normscope explain noisy-batchnorm")
def explain(
    name: Annotated[str, typer.Argument(metavar="SLUG", help="A study, a probe, a layer or a rule.")],
    as_json: Json = False,
) -> None:
    """Explain a study, a probe, a layer or a rule: its page."""
    from normscope.explain import unit

    say_page(unit(name), as_json)


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
    from normscope import verdicts as judging

    try:
        with progress_bar(as_json, studies=len(set(slugs))) as progress:
            ended = None if as_json else ending(progress, len(set(slugs)))
            runs, failed = judging.run(slugs, out=out, progress=progress, ended=ended, **settings)
    except KeyboardInterrupt:
        typer.echo("normscope: interrupted; run the same command again to go on where it stopped", err=True)
        raise typer.Exit(130) from None
    _finish(runs, out, as_json, failed)
    if failed:
        raise typer.Exit(1)


def _finish(runs: Sequence["Judged"], out: Path, as_json: bool, failed: Mapping[str, str] | None = None) -> None:
    from normscope import report as page, verdicts as judging

    verdicts = [judged.verdict for judged in runs]
    path = judging.write_report(runs, out / "report.html")
    if as_json:
        took = {judged.verdict.study: round(judged.seconds, 1) for judged in runs if judged.seconds}
        document = {"report": str(path), "verdicts": [asdict(verdict) for verdict in verdicts], "seconds": took}
        print_json(document | ({"failed": failed} if failed else {}))
        return
    console = wide()
    console.print(page.console(verdicts))
    total = sum(judged.seconds for judged in runs)
    times = ", ".join(f"{judged.verdict.study} {judged.seconds:.0f} s" for judged in runs if judged.seconds)
    if times:
        times += f"; {total:.0f} s in all" if len(runs) > 1 else ""
        console.print(f"Time in the studies: {times}", highlight=False)
    console.print(f"The page with the pictures: {path}", highlight=False, soft_wrap=True)
    for slug, said in (failed or {}).items():
        typer.echo(f"normscope: {slug} failed and is not in there: {said}", err=True)
