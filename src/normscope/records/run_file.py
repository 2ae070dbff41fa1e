"""The file ``run.json`` of a run: its configuration, with a hash, and its provenance."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from normscope._errors import StoreError, UsageError
from normscope.records.json import digest, loads
from normscope.records.places import Place
from normscope.records.provenance import collect

#: Version of the folder's layout. In the first, nothing proved parts and marks; it is read all the same.
FORMAT = 2
_READ = (1, FORMAT)


class UnreadableRunError(StoreError):
    """The file ``run.json`` is missing or damaged; records beside it may be whole."""


def begun(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``run.json`` of a run that begins now holds.

    Args:
        config: Its configuration, in canonical form.
    """
    return {"format": FORMAT, "config": config, "config_hash": digest(config), "provenance": collect()}


def text_of(run: Mapping[str, Any]) -> str:
    """Return the text of ``run.json``, with a digest of all that it says."""
    told = {key: value for key, value in run.items() if key != "check"}
    return json.dumps(told | {"check": digest(told)}, indent=1) + "\n"


def read_run(place: Place) -> dict[str, Any]:
    """Return what ``run.json`` of a run's folder holds.

    Raises:
        UnreadableRunError: There is none, or it is damaged.
        StoreError: It is of another version, or the place cannot be read.
    """
    path = place.at("run.json")
    try:
        run = loads(place.read("run.json"))
        parts = [run["config"], run["provenance"]]
        version, whole = run["format"], all(isinstance(part, dict) for part in parts) and _is_whole(run)
    except FileNotFoundError:
        raise UnreadableRunError(f"{place} holds no run (no run.json); give the folder of a run") from None
    except (ValueError, KeyError, TypeError, UsageError):
        version, whole = FORMAT, False
    if version in _READ and not whole:
        raise UnreadableRunError(f"{path} is damaged: put a copy of it back, or record into another folder")
    if version not in _READ:
        raise StoreError(f"{path} has layout {version}, this version reads {FORMAT}; use the version that wrote it")
    return dict(run)


def rewrite(place: Place, config: Mapping[str, Any]) -> None:
    """Give the run in a place another configuration; its cells and its provenance stay.

    Args:
        place: Where the run lies.
        config: The configuration, in its canonical form.

    Raises:
        UnreadableRunError: There is no run, or its file is damaged.
        StoreError: The place cannot be written.
    """
    run = read_run(place) | {"config": config, "config_hash": digest(config)}
    place.write("run.json", text_of(run).encode())


def _is_whole(run: Mapping[str, Any]) -> bool:
    """Return whether a run file says what was written, as far as its layout can tell."""
    if digest(run["config"]) != run["config_hash"]:
        return False
    told = {key: value for key, value in run.items() if key != "check"}
    return run["format"] == 1 or run.get("check") == digest(told)


def differences(there: Mapping[str, Any], wanted: Mapping[str, Any], limit: int = 4) -> str:
    """Say which keys differ, as ``seeds: 10 there, 20 asked``."""
    old, new = dict(_flat(there)), dict(_flat(wanted))
    said = []
    for key in sorted(old.keys() | new.keys()):
        if key in old and key in new and old[key] == new[key]:
            continue
        have = json.dumps(old[key]) if key in old else "nothing"
        want = json.dumps(new[key]) if key in new else "nothing"
        said.append(f"{key}: {have} there, {want} asked")
    return "; ".join(said[:limit]) + (f"; and {len(said) - limit} more" if len(said) > limit else "")


def _flat(value: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flat(item, f"{before}{key}.")
        else:
            yield f"{before}{key}", item
