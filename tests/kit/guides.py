"""Pages of documentation as tests read them: their blocks of code, and the commands that they name."""

import re
import shlex
from pathlib import Path

import typer.main

from normscope import cli

ROOT = Path(__file__).parents[2]
#: Written by hand, and read by users.
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples/README.md", *ROOT.glob("docs/*.md")])


def blocks(text, language):
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """Return the commands of normscope that a page names: lines of its shell blocks, and code within its sentences."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    lines += [line.removeprefix("- run: ") for block in blocks(text, "yaml") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
    return [line for line in lines if line.startswith("normscope ")]


def parsed(command):
    """Parse a command as the program would, without running it; raise if it does not fit.

    Returns:
        The names of the commands that were called, such as ``["study", "run"]``.
    """
    # A bucket may be named where the package for buckets is not installed: only the words are looked at here.
    words = shlex.split(command.replace("s3://", "bucket/"), comments=True)[1:]
    if ">" in words:
        words = words[: words.index(">")]
    if "|" in words:
        words = words[: words.index("|")]
    at, called = typer.main.get_command(cli.app), []
    while words and getattr(at, "commands", None):
        called.append(words.pop(0))
        at = at.commands[called[-1]]
    if not getattr(at, "commands", None) and words:
        at.make_context(called[-1], list(words))
    return called
