"""Claims cells in a process of its own."""

import os

from normscope.records import claim_cell


def _no_link(*_: object) -> None:
    raise OSError("this file system has no hard links")


def claim_often(folder: str, times: int, links: bool) -> list[str]:
    """Claim so many cells of one name, with or without a file system that has hard links."""
    if not links:
        os.link = _no_link
    return [claim_cell(folder, "scope") for _ in range(times)]
