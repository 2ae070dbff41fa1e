"""Cells in a run's folder that are not of the run: copied there, their records would be taken for the run's own."""

from collections.abc import Mapping
from typing import Any

from normscope._errors import StoreError
from normscope.records import Cell, Store


def own_cells(store: Store, config: Mapping[str, Any]) -> list[Cell]:
    """Return the complete cells of a run; a cell of another study, data, device or version of the study is refused.

    Args:
        store: The run.
        config: Its configuration.

    Raises:
        StoreError: There is such a cell; the message names its file.
    """
    wanted = {"data": config["data"]["fingerprint"], "device": config["device"], "version": config["version"]}
    cells = store.cells()
    for cell in cells:
        others = [f"of another {key}" for key, value in wanted.items() if cell.settings.get(key, value) != value]
        others += [f"of the study {cell.study}"] if cell.study != config["study"] else []
        if others:
            file = store.place.at(f"cell-{cell.id}.json")
            raise StoreError(f"{store.place} holds a cell that is not of this run ({others[0]}): delete {file}")
    return cells
