"""``normscope verify``."""

from pathlib import Path
from typing import Annotated

import typer

from normscope._errors import UsageError
from normscope.cli._print import print_json, print_lines, print_text
from normscope.cli._progress import interruptible, status_line
from normscope.cli._words import Json


def verify(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE.py[:FUNCTION]",
            help="A file with the functions forward and backward, and the inputs; or a function in it that returns "
            "these three.",
        ),
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a file to begin with: a lecture note's formulas for batch norm.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify a gradient formula: right or wrong for each argument, by how much, and which known term is missing.

    Exit code 0: the formula is right; 1: it is wrong; 2: misuse, or nothing could be compared.
    """
    if example:
        if target is not None:
            raise UsageError("--example prints a file of its own: give no file with it")
        print_text(_example_file().read_text(encoding="utf-8"))
        return
    if target is None:
        raise UsageError(
            "give FILE.py or FILE.py:FUNCTION; `normscope verify --example > note.py` writes a file to begin with"
        )
    from normscope import verifying
    from normscope.usercode import no_words, quiet_stdout
    from normscope.verifying.target import opened

    waiting = interruptible("nothing was changed")
    with waiting, quiet_stdout(), no_words(), status_line(as_json) as show, opened(target) as formula:
        if show is not None:
            show("comparing with the true gradient")
        found = verifying.verify(formula.forward, formula.backward, *formula.inputs)
    if as_json:
        print_json(found.to_json())
    else:
        print_lines(*str(found).splitlines())
    raise typer.Exit(0 if found.ok else 1)


def _example_file() -> Path:
    """Return the file with a note's formulas that ships with the package."""
    return Path(__file__).parent.parent / "examples" / "batch_norm_note.py"
