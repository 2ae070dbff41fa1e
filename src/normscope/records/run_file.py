"""The file ``run.json`` of a run: its configuration, with a hash, and its provenance."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from normscope._errors import StoreError
from normscope.records.files import write_text
from normscope.records.json import digest

#: Version of the folder's layout.
FORMAT = 1


class UnreadableRunError(StoreError):
    """The file ``run.json`` is missing or damaged; records beside it may be whole."""


def text_of(run: Mapping[str, Any]) -> str:
    """Return the text of ``run.json``."""
    return json.dumps(run, indent=1) + "\n"


def read_run(folder: Path) -> dict[str, Any]:
    """Return what ``run.json`` of a run's folder holds.

    Raises:
        UnreadableRunError: There is none, or it is damaged.
        StoreError: It is of another version, or the folder cannot be read.
    """
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(run["config"], dict) and isinstance(run["provenance"], dict) and "config_hash" in run
        version = run["format"]
    except FileNotFoundError:
        raise UnreadableRunError(f"{folder} holds no run (no run.json); give the folder of a run") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        whole, version = False, FORMAT
    if not whole or (version == FORMAT and digest(run["config"]) != run["config_hash"]):
        raise UnreadableRunError(f"{path} is damaged: put a copy of it back, or record into another folder")
    if version != FORMAT:
        raise StoreError(f"{path} has layout {version}, this version reads {FORMAT}; use the version that wrote it")
    return dict(run)


def rewrite(folder: Path, config: Mapping[str, Any]) -> None:
    """Give the run in a folder another configuration; its cells and its provenance stay.

    Args:
        folder: The run's folder.
        config: The configuration, in its canonical form.

    Raises:
        UnreadableRunError: There is no run, or its file is damaged.
        StoreError: The folder cannot be written.
    """
    run = read_run(folder) | {"config": config, "config_hash": digest(config)}
    write_text(folder / "run.json", text_of(run))


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
