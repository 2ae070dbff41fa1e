"""The folder of a comparison, where runs of the same set-up may lie, or another comparison."""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from normscope._errors import StoreError
from normscope.comparing.reuse import CODE
from normscope.records import Store
from normscope.records.addresses import place_of
from normscope.records.json import canonical_form
from normscope.records.run_file import rewrite

_OTHER_SOURCE = "the file of the factory has changed since"
_OTHER_START = "the first training step is another: something that the factory uses has changed since"
_OTHER_FACTORY = "it is of another factory"
_OTHER_DEVICE = "it was run on another kind of device"
_OTHER_VERSIONS = "it was made with other versions of normscope or torch"
_COST = "cost.json"
_OURS = ("run.json", _COST, "part-*.parquet", "cell-*.json")


def opened(folder: Path, config: Mapping[str, Any], *, fresh: bool) -> Store:
    """Open the folder of a comparison for writing, whatever other arms, rates and questions were asked for in it.

    Runs that lie there stay; those that serve are not run again. A comparison of which no cell is complete makes room.

    Args:
        folder: Where the comparison is to lie, or lies.
        config: Its configuration.
        fresh: Whether a comparison of another set-up that lies there is deleted.

    Raises:
        StoreError: A comparison of another set-up lies there, or the folder cannot be written.
    """
    if place_of(folder).holds("run.json"):
        there = Store.open(folder)
        if there.config.get("kind") == CODE:
            _take_up(there, config, fresh=fresh)
    return Store.create(folder, config)


def _take_up(there: Store, config: Mapping[str, Any], *, fresh: bool) -> None:
    """Have the folder take the configuration, or delete what lies there."""
    place, why = there.place, why_another(there.config, config) or _other_length(there.config, config)
    if why and not fresh and there.completed():
        raise StoreError(
            f"{place} holds another comparison ({why}): choose another folder by --out, or delete what lies there by "
            "--fresh"
        )
    if why:
        for name in place.names():
            if any(fnmatch(name, pattern) for pattern in _OURS):
                place.delete(name)
        return
    wanted: Any = canonical_form(config)
    if [arm for arm in there.config["arms"] if not arm.get("added")] != wanted["arms"]:
        place.delete(_COST)  # arms are timed in turn with each other
    if there.config != wanted:
        rewrite(place, wanted)


def with_added(store: Store, arm: Mapping[str, Any]) -> Store:
    """Return the store with an arm in its configuration that the runs have turned out to need."""
    config: Any = canonical_form({**store.config, "arms": [*store.config["arms"], {**arm, "added": True}]})
    rewrite(store.place, config)
    return Store.create(store.path, config)


def why_another(there: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Say why the runs of a folder are of another set-up than a comparison that is asked for; empty if they are not.

    Set-ups that only one of the two comparisons has are not compared.

    Args:
        there: The configuration of the folder.
        config: That of the comparison.
    """
    wanted: Any = canonical_form(config)
    if why := _differing(there.get("source"), wanted["source"], _OTHER_SOURCE, _OTHER_FACTORY):
        return why
    if why := _differing(there.get("start"), wanted["start"], _OTHER_START, _OTHER_DEVICE):
        return why
    return _OTHER_VERSIONS if there.get("versions") != wanted["versions"] else ""


def _differing(before: Any, now: Mapping[str, str], differs: str, nothing_shared: str) -> str:
    """Say how digests differ from earlier ones of the same name; empty if they do not."""
    if before == now:
        return ""
    shared = now.keys() & before.keys() if isinstance(before, Mapping) else set()
    if not shared:
        return nothing_shared
    return differs if any(before[name] != now[name] for name in shared) else ""


def _other_length(there: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Say in which number all runs of a folder differ from those that are asked for; empty if they do not."""
    for key, words in (("steps", "steps a run"), ("batches", "batches an evaluation")):
        before, now = there["plan"][key], config["plan"][key]
        if before != now:
            return f"{before} {words}, not {now}"
    return ""
