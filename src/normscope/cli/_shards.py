"""How a command ends that has run a share of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from normscope.cli._print import print_json, print_lines
from normscope.records.addresses import shown


@contextmanager
def shard_ending(out: Path, as_json: bool) -> Iterator[None]:
    """End the command in one line where cells of other shards are missing; exit code 1 if a study failed, else 0.

    Args:
        out: Folder of the run.
        as_json: Whether a JSON document is printed in place of the line.
    """
    from normscope.running import IncompleteRunError

    try:
        yield
    except IncompleteRunError as found:
        if as_json:
            print_json({"shard": found.shard, "ran": found.ran, "complete": found.complete, "cells": found.total})
        else:
            print_lines(f"{found}: `normscope report {shown(out)}` judges when all are")
        raise typer.Exit(1 if found.failed else 0) from None
