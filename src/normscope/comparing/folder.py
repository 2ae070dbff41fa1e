"""The folder of a comparison, where another comparison may lie."""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from normscope._errors import StoreError
from normscope.comparing.reading import CODE
from normscope.records import Store
from normscope.records.addresses import place_of
from normscope.records.json import canonical_form

_CHANGED = {
    "source": "the file of the factory has changed since",
    "start": "the first training step is another: something that the factory uses has changed since",
    "versions": "it was made with other versions of normscope or torch",
}
_OURS = ("run.json", "cost.json", "part-*.parquet", "cell-*.json")


def opened(folder: Path, config: Mapping[str, Any], *, fresh: bool) -> Store:
    """Open the folder of a comparison for writing; a comparison of another configuration that lies there stands.

    A comparison of which no cell is complete makes room by itself.

    Args:
        folder: Where the comparison is to lie, or lies.
        config: Its configuration.
        fresh: Whether a comparison of another configuration that lies there is deleted.

    Raises:
        StoreError: Another comparison lies there, or the folder cannot be written.
    """
    _make_room(folder, config, fresh=fresh)
    return Store.create(folder, config)


def _make_room(folder: Path, config: Mapping[str, Any], *, fresh: bool) -> None:
    place = place_of(folder)
    if not place.holds("run.json"):
        return
    there = Store.open(folder)
    if there.config.get("kind") != CODE or _alike(there.config, config):
        return
    if not fresh and there.completed():
        reasons = [_CHANGED[key] for key in _CHANGED if there.config.get(key) != canonical_form(config.get(key))]
        said = "; ".join(reasons[:1]) or "arms, steps, learning rates or questions are others"
        raise StoreError(
            f"{folder} holds another comparison ({said}): choose another folder by --out, or delete what lies there by "
            "--fresh"
        )
    for name in place.names():
        if any(fnmatch(name, pattern) for pattern in _OURS):
            place.delete(name)


def _alike(there: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return all(there.get(key) == canonical_form(value) for key, value in config.items())
