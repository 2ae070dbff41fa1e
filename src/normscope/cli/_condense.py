"""A comparison as one file without its records, as ``normscope report --condense`` writes it."""

from pathlib import Path
from typing import TYPE_CHECKING

from normscope._errors import UsageError

if TYPE_CHECKING:
    from normscope.comparing import Comparison

_ON, _FROM = " on ", " from "


def condense_comparison(comparison: "Comparison", file: Path, network: str, differs: str) -> None:
    """Write a comparison without its records and without names of layers and paths.

    Args:
        comparison: The comparison.
        file: The JSON file to write.
        network: ``"NAME on DATA"``.
        differs: ``"THING from NAME on DATA"``: in what the network alone differs from another; empty if from none.

    Raises:
        UsageError: A name is missing, or the comparison has too few seeds for words.
        StoreError: The file cannot be written.
    """
    from normscope import atlas
    from normscope.comparing import condense
    from normscope.records.addresses import save

    name, on, data = network.rpartition(_ON)
    thing, apart, other = differs.rpartition(_FROM)
    if not on:
        raise UsageError("--condense of a comparison needs --network 'NAME on DATA', as in 'VGG-A on CIFAR-10'")
    if differs and (not apart or _ON not in other):
        raise UsageError("--differs takes 'THING from NAME on DATA', as in 'the depth (20) from VGG-A on CIFAR-10'")
    save(file, atlas.dumps(condense(comparison, network=name, data=data, differs_from=other, differs_in=thing)))
