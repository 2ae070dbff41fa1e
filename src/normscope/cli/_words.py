"""Options that several commands share."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from normscope._errors import UsageError

#: More seeds, processes, batches or rounds than these are a slip of the hand: they would run for weeks.
MOST_SEEDS = 10_000
MOST_WORKERS = 1_024
MOST_BATCHES = 100_000
MOST_ROUNDS = 10_000


def path(name: str | Path) -> Path:
    """Return the path that an option names, with ``~`` expanded: a shell does not expand it in ``--out=~/runs``.

    Raises:
        UsageError: No file can be called so, the folders above it cannot be entered, or it is an address of no bucket.
    """
    from normscope.records.addresses import place_of
    from normscope.records.places import Folder
    from normscope.records.reading import reached

    place = place_of(name)
    if not isinstance(place, Folder):
        return Path(name)
    return reached(place.path if os.fspath(name) else name)


def settled(folder: Path) -> Path:
    """Return a folder's path from the root, for a user's code may go to another folder; a bucket's address as it is."""
    from normscope.records.addresses import place_of
    from normscope.records.places import Folder

    return folder.absolute() if isinstance(place_of(folder), Folder) else folder


def file_to_write(name: str | Path) -> Path:
    """Return the path of a file that is written after long work, if it can be written.

    Raises:
        UsageError: As `path`; or it is no file, or no file can be made there.
    """
    file = path(name)
    above = next(each for each in (file, *file.absolute().parents) if each.exists())
    fits = file.is_file() if above == file else above.is_dir()
    if not fits or not os.access(above, os.W_OK):
        raise UsageError(f"cannot write {file}: name a file in a folder that can be written")
    return file


#: An option that names a file or folder, as `path` reads it.
path_option = partial(typer.Option, parser=path)

Out = Annotated[
    Path,
    path_option("--out", help="Folder for records and the report; an unfinished run is resumed."),
]
TableOut = Annotated[
    Path | None, typer.Option("--out", parser=file_to_write, help="Markdown file to write the tables into.")
]
Preset = Annotated[str, typer.Option(help="quick (minutes on two cores) or full (the original's protocol).")]
Data = Annotated[
    str | None,
    typer.Option(
        help="digits, text (for transformers), fashion-mnist, cifar10, or a PATH: folder of idx files, or an npz.  "
        "[default: the study's own, digits for most]"
    ),
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Workers = Annotated[
    int | None, typer.Option(min=1, max=MOST_WORKERS, help="Processes, one thread each.  [default: the cores]")
]
Executor = Annotated[
    str | None,
    typer.Option(
        help="Where cells are computed: local, ray, slurm, with options as in ray:address=auto or "
        "slurm:partition=long,timeout_min=60.  [default: local]"
    ),
]
Shard = Annotated[
    str | None, typer.Option(metavar="K/N", help="Run the K-th of N shares of the cells, such as 2/3, and no more.")
]
Codes = list[str] | None
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def group(purpose: str, example: str) -> typer.Typer:
    """Return an empty group of commands.

    Args:
        purpose: Its help.
        example: A command of it, for the end of its help.
    """
    return typer.Typer(help=purpose, epilog=f"Example:  {example}", no_args_is_help=True, rich_markup_mode=None)


def codes(given: Sequence[str] | None) -> list[str] | None:
    """Split options with rules' codes or names at commas, and write codes in capitals; None if none is given.

    Raises:
        UsageError: What is given names nothing.
    """
    if not given:
        return None
    parts = [part.strip() for words in given for part in words.split(",")]
    named = [part.upper() if part[:2].lower() == "ns" else part for part in parts if part]
    if not named:
        raise UsageError(
            f"{', '.join(map(repr, given))} names no rule: give codes or names, such as NS1 or NS102,NS105"
        )
    return named
