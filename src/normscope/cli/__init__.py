"""The command line, one file a command. Thin: a command reads words, calls the rooms and prints.

Heavy rooms are imported inside the commands, so that help answers at once.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from normscope import __version__
from normscope._errors import NormscopeError, one_line
from normscope.cli import (
    atlas,
    bench,
    check,
    compare,
    completion,
    demo,
    example,
    explain,
    lists,
    report,
    start,
    study,
    verify,
    watch,
)
from normscope.usercode import described, exits_told, place_of

_USAGE: Any = typer.BadParameter.__bases__[0]  # the parser raises it for words that do not fit

app = typer.Typer(
    name="normscope",
    help="Measure what normalization does to your network.",
    epilog="Start with:  normscope demo",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # of all commands below, too
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(study.app, name="study")
app.add_typer(bench.app, name="bench")
app.command("demo", epilog="Example:  normscope demo --out runs/demo")(demo.demo)
app.command("compare", epilog="Example:  normscope compare train.py:make_case --budget 20min")(compare.compare)
app.command("atlas", epilog="Example:  normscope atlas --open")(atlas.atlas)
app.command("check", epilog="Example:  normscope check train.py:make_case --select NS1 --format sarif")(check.check)
app.command("verify", epilog="Example:  normscope verify --example > note.py && normscope verify note.py")(
    verify.verify
)
app.command("example", epilog="Example:  normscope example > train.py")(example.example)
app.command("report", epilog="Example:  normscope report runs/demo --open")(report.report)
app.command("watch", epilog="Example:  normscope watch runs/mine --open")(watch.watch)
app.command("rules", epilog="Example:  normscope rules --json")(lists.rules)
app.command("probes", epilog="Example:  normscope probes")(lists.probes)
app.command("layers", epilog="Example:  normscope layers")(lists.layers)
app.command("completion", epilog="Example:  normscope completion bash > ~/.normscope-completion.bash")(
    completion.completion
)
app.command("explain", epilog="Example:  normscope explain noisy-batchnorm")(explain.explain)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"normscope {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure what normalization does to your network."""
    if context.invoked_subcommand is None:
        start.print_start(context.get_help())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: Words after the program's name; the process's own when None.

    Whatever goes wrong ends in one line on standard error and exit code 2; with ``NORMSCOPE_TRACEBACK`` set in the
    environment, what is no mistake of the user's ends in a traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    completion.answer_shells()
    try:
        with exits_told():
            code = app(args=words, prog_name="normscope", standalone_mode=False)
    except typer.Abort:
        raise SystemExit(130) from None
    except NormscopeError as error:
        _refuse(str(error))
    except _USAGE as error:
        message = error.format_message().rstrip()
        message += "" if message.endswith((".", "?", "!")) else "."
        if message.startswith("Usage:"):  # a group without a command answers with its help
            typer.echo(message, err=True)
            raise SystemExit(2) from None
        path = error.ctx.command_path if error.ctx else "normscope"
        _refuse(f"{message} See `{path} --help`.")
    except BaseException as error:
        if isinstance(error, SystemExit) and not place_of(error):  # of the answers to a shell
            raise
        if os.environ.get("NORMSCOPE_TRACEBACK"):
            raise
        _refuse(_unforeseen(error))
    raise SystemExit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> NoReturn:
    """End with a line on standard error."""
    line = f"normscope: {one_line(message)}"
    try:
        typer.echo(line, err=True)
    except (OSError, ValueError):  # a user's code has closed the stream
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
    raise SystemExit(2) from None


def _unforeseen(error: BaseException) -> str:
    """Return what is said of an exception that nobody has turned into a sentence."""
    if place := place_of(error):
        return f"your code raised {described(error)} ({place})"
    try:
        Path.cwd()
    except FileNotFoundError:
        return "the current folder is gone: go to another folder, and run the command again"
    if isinstance(error, OSError) and error.strerror:  # of a disk, a folder or a file, wherever it was met
        return (
            f"cannot use {error.filename}: {error.strerror}" if error.filename else f"{error.strerror}: no work is lost"
        )
    if isinstance(error, MemoryError):
        return "this machine has too little memory for it: take fewer or smaller data, layers, seeds or workers"
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"a fault of normscope's own: {described(error)}{at}; set NORMSCOPE_TRACEBACK=1 to see where, and report it"
