"""``normscope watch``."""

import contextlib
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from normscope.cli._print import print_lines
from normscope.cli._words import path as users_path


def watch(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", parser=users_path, help="The folder that a scope records to, now or later.")
    ],
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the page.  [default: 7117, or another that is free]")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Beyond this machine's loopback the page asks for a token.")
    ] = "127.0.0.1",
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    token: Annotated[
        str | None,
        typer.Option(help="Token that the page asks for, on the loopback too: for machines that others log in to."),
    ] = None,
) -> None:
    """Show a training in the browser while it runs: a page of its records, which asks for new rows each second."""
    from normscope.live import LiveServer

    def compose(folder: Path) -> dict[str, list[str]]:
        from normscope import seen  # loads torch: not before the page is there

        return seen.sentences_by_cell(seen.read(folder))

    with (
        LiveServer(run, host=host, port=port, token=token, compose=compose) as server,
        contextlib.suppress(KeyboardInterrupt),
    ):
        print_lines(f"Watching {run} at {server.url}   (Ctrl-C ends it)")
        if show:
            webbrowser.open(server.url)
        server.serve()
