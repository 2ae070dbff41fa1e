"""``normscope completion``: the script by which a shell completes commands, options and codes of rules."""

import os
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.completion import get_completion_inspect_parameters, get_completion_script

from normscope.cli._print import print_text

_VARIABLE = "_NORMSCOPE_COMPLETE"  # set by the script when it asks what may follow


class Shell(StrEnum):
    """The shell."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell.")]) -> None:
    """Print the script by which a shell completes commands, options and codes of rules.

    In ~/.bashrc or, after compinit, in ~/.zshrc: eval "$(normscope completion bash)", or zsh for bash; in
    ~/.config/fish/config.fish: normscope completion fish | source
    """
    print_text(get_completion_script(prog_name="normscope", complete_var=_VARIABLE, shell=shell.value) + "\n")


def answer_shells() -> None:
    """Have the command line answer a shell that asks what may follow, if one does."""
    if _VARIABLE in os.environ:
        get_completion_inspect_parameters()  # makes the shells known


def complete_codes(incomplete: str) -> list[tuple[str, str]]:
    """Return codes of rules that may follow, each with its name; of a list of codes the last one is completed.

    Args:
        incomplete: What is typed so far.
    """
    typed, comma, last = incomplete.rpartition(",")
    found = [(code, slug) for code, slug in sorted(_rules()) if code.startswith(last.upper())]
    return [(f"{typed}{comma}{last}{code[len(last) :]}", slug) for code, slug in found]  # shells keep what is typed


def _rules() -> Iterator[tuple[str, str]]:
    """Yield code and name of each rule as its file says them: a shell waits, and importing rules takes seconds."""
    for path in (Path(__file__).parents[1] / "rules").glob("[!_]*.py"):
        found = re.search(r'^    CODE = "(NS\d+)"\n    SLUG = "([\w-]+)"$', path.read_text(encoding="utf-8"), re.M)
        if found is not None:
            yield found[1], found[2]
