"""The page of the command line: the help of every command, as a terminal prints it."""

from collections.abc import Iterator
from typing import Any

import typer.main

from normscope import cli


def page() -> str:
    """Return the page as Markdown."""
    parts = [
        "# Command line",
        "Every command has `--help` with an example, and `--json` where a program may read it. A mistake ends in one "
        "line on standard error and exit code 2.",
    ]
    for name, text in _helps(typer.main.get_command(cli.app), "normscope"):
        parts += [f"## {name}", f"```text\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def _helps(command: Any, name: str, above: Any = None) -> Iterator[tuple[str, str]]:
    """Yield the words that call a command, and its help; the commands below it after it."""
    context = command.context_class(command, info_name=name if above is None else name.split()[-1], parent=above)
    context.terminal_width = context.max_content_width = 100
    yield name, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    for below in getattr(command, "commands", {}).values():
        if not below.hidden:
            yield from _helps(below, f"{name} {below.name}", context)
