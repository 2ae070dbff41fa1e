"""Who is at work on a run: of two processes that would compute the same cells, the second is refused.

Whoever computes cells leaves a file ``driver-SHARE.json`` beside them, and renews it while it works. Processes that
share a run by ``--shard K/N`` have a file each. A file whose process has ended is left over from a crash: it makes way.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from normscope._errors import StoreError
from normscope.records import files
from normscope.records.json import loads
from normscope.records.places import Place

#: Seconds between two renewals.
RENEWED_EVERY = 20.0
#: After so many seconds without a renewal a process of another machine, which cannot be seen, counts as ended.
STALE = 120.0

_WHOLE = "whole"


@contextmanager
def driven(place: Place, shard: tuple[int, int] | None = None) -> Iterator[None]:
    """Have this process alone compute the cells of a run, or of its share of them, for as long as the block lasts.

    Args:
        place: Where the run lies; it can be written.
        shard: Number of the share, from 1, and how many there are; None for the whole run.

    Raises:
        StoreError: Another process is at work on the same cells; the message says which. Or the place cannot be
            written.
    """
    share = _WHOLE if shard is None else f"{shard[0]}-of-{shard[1]}"
    name, mine = f"driver-{share}.json", _myself()
    _refuse_others(place, share)
    if not place.write(name, _text(mine), replace=False):
        _refuse_others(place, share)
        raise StoreError(f"{place} was taken by another process just now: run the same command again")
    done = threading.Event()
    renewing = threading.Thread(target=_renew, args=(place, name, mine, done), daemon=True, name="renew-lease")
    try:
        _refuse_others(place, share, but=name)  # two that begin together with shares that overlap see each other here
        renewing.start()
        yield
    finally:
        done.set()
        if renewing.is_alive():
            renewing.join()
        with suppress(StoreError, OSError):
            if _read(place, name).get("token") == mine["token"]:
                place.delete(name)


def _refuse_others(place: Place, share: str, but: str = "") -> None:
    """Raise where another process is at work on cells of a share; remove what a process that ended has left over."""
    for name in place.names():
        if not (name.startswith("driver-") and name.endswith(".json")) or name == but:
            continue
        other = name[len("driver-") : -len(".json")]
        if other != share and _are_apart(other, share):
            continue
        told = _read(place, name)
        if _has_ended(told):
            place.delete(name)
            continue
        raise StoreError(
            f"{place} is being written by {_in_words(told)}: wait for it, or stop it. Processes share the work where "
            "each is given its share, such as --shard 1/3"
        )


def _are_apart(one: str, other: str) -> bool:
    """Return whether two shares have no cell in common: they are different shares of as many."""
    counts = [share.partition("-of-")[2] for share in (one, other)]
    return bool(counts[0]) and counts[0] == counts[1]


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_began": files.process_began(os.getpid()),
        "since": time.time(),
        "renewed": time.time(),
        "token": uuid.uuid4().hex,
    }


def _text(told: dict[str, Any]) -> bytes:
    return (json.dumps(told) + "\n").encode()


def _read(place: Place, name: str) -> dict[str, Any]:
    """Return what a file of a process says; nothing where it is gone or damaged."""
    try:
        told = loads(place.read(name))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _has_ended(told: dict[str, Any]) -> bool:
    pid, renewed = told.get("pid"), told.get("renewed")
    if not isinstance(pid, int) or not isinstance(renewed, int | float) or pid <= 0:
        return True  # damaged, so nobody renews it
    if told.get("host") == socket.gethostname():
        return not files.alive(pid) or files.process_began(pid) != told.get("process_began")
    return time.time() - renewed > STALE


def _in_words(told: dict[str, Any]) -> str:
    since = datetime.fromtimestamp(float(told.get("since") or 0), UTC).strftime("%H:%M:%S UTC")
    if told.get("host") == socket.gethostname():
        return f"process {told['pid']} of this machine since {since}"
    waits = max(1, round(STALE - (time.time() - float(told["renewed"]))))
    return (
        f"process {told['pid']} on {str(told.get('host'))[:80]} since {since} (if that process was killed, its claim "
        f"ends in {waits} s)"
    )


def _renew(place: Place, name: str, mine: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(RENEWED_EVERY):
        with suppress(StoreError, OSError):  # a place that fails for a moment; the work itself will say so
            place.write(name, _text(mine | {"renewed": time.time()}))
