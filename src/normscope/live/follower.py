"""What a viewer of a run sees: the parts of its folder, read once each as they appear, and how the run stands."""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope._errors import DataError, NormscopeError, StoreError, UsageError
from normscope.live.sentences import Compose, Sentences
from normscope.live.series import SeriesCollection
from normscope.records import CellClaim, claims
from normscope.records.addresses import place_of, require_folder
from normscope.records.parts import Part, list_parts, read_part, texts
from normscope.records.reading import ordinary
from normscope.records.run_file import read_run

if TYPE_CHECKING:
    import polars as pl

#: Seconds between two looks into the folder, however many viewers ask.
PAUSE = 0.3
#: Seconds after its last rows after which a process that has gone counts as ended.
ENDED_FOR = 3.0

_RATE_OVER = 60.0  # seconds over which rows per second are told
_QUIET = 10.0  # seconds without rows after which the page says so
_LARGEST_TEXT = 100_000

Signature = tuple[int, int, int]


@dataclass(slots=True)
class _CellState:
    rows: int = 0
    step: int = 0
    changed: float = 0.0  # time of its newest part
    writer_began: float = 0.0
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=600))


class Follower:
    """Follows one run's folder, which need not exist yet. Reads it alone, and writes nothing.

    Safe to be asked by several threads.

    Args:
        folder: The run's folder.
        compose: Composes the sentences on what stands out, from the folder; None for those alone that lie there.

    Raises:
        UsageError: The folder holds the run of a study, or several runs.
    """

    def __init__(self, folder: str | os.PathLike[str], compose: Compose | None = None) -> None:
        self.folder = require_folder(folder, "the live page")
        self._sentences = None if compose is None else Sentences(self.folder, compose)
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._run_file: Signature | None = None
        self._begin()
        _require_open_ended(self.folder)

    def _begin(self) -> None:
        self._name = os.urandom(8).hex()  # of what was collected: a viewer of another collection starts anew
        self._collection = SeriesCollection()
        self._parts: dict[str, tuple[Part, Signature]] = {}
        self._damaged: dict[str, Signature] = {}
        self._cells: dict[str, _CellState] = {}
        self._trouble = ""

    def answer(self, collection: str, version: int) -> dict[str, Any]:
        """Return how the run stands, and what came after what a viewer has.

        Args:
            collection: The collection that the viewer has, as the last answer named it; anything else for none.
            version: The version that the viewer has of it.

        Returns:
            JSON values: ``collection``, ``version``, ``series`` and ``points`` (see `SeriesCollection.since`),
            ``cells``, ``folder``, ``state``, ``said``, ``damaged`` and ``dropped``.
        """
        with self._lock:
            if time.monotonic() - self._looked >= PAUSE:
                self._look()
                self._looked = time.monotonic()
            known = version if collection == self._name and 0 <= version <= self._collection.version else 0
            return {
                "collection": self._name,
                "version": self._collection.version,
                **self._collection.since(known),
                **self._standing(),
            }

    # -- the folder

    def _look(self) -> None:
        self._trouble = ""
        try:
            signature = _signature(self.folder / "run.json")
            if signature is not None and self._run_file not in (None, signature):
                self._begin()  # the folder was deleted, and another run is there now
            self._run_file = signature or self._run_file
            if signature is not None:
                _require_open_ended(self.folder)
            parts = list_parts(self.folder)
            if self._changed(parts):
                self._begin()
            for part in parts:
                self._take(part)
            self._damaged = {name: old for name, old in self._damaged.items() if (self.folder / name).exists()}
        except NormscopeError as error:
            self._trouble = str(error)

    def _changed(self, parts: list[Part]) -> bool:
        """Whether what was read is no longer what lies there, so that all must be read again.

        It happens where a flush was written twice, for its disk failed, and where parts were merged of which some were
        never seen by themselves.
        """
        for part in parts:
            known = self._parts.get(part.path.name)
            if known is not None:
                if _signature(part.path) not in (None, known[1]):
                    return True
            elif any(part.covers(old) for old, _ in self._parts.values()) and not self._seen_whole(part):
                return True
        return False

    def _seen_whole(self, part: Part) -> bool:
        within = sorted((old.first, old.last) for old, _ in self._parts.values() if part.merges(old))
        reached = part.first
        for first, last in within:
            if first <= reached:
                reached = max(reached, last + 1)
        return reached > part.last

    def _take(self, part: Part) -> None:
        """Read a part that was not read before; a part that merges parts that were read stands for them from now on."""
        name, signature = part.path.name, _signature(part.path)
        if signature is None or name in self._parts or self._damaged.get(name) == signature:
            return  # a part that has just been merged is met at the next look
        if self._seen_whole(part):
            self._parts = {key: known for key, known in self._parts.items() if not part.covers(known[0])}
            self._parts[name] = part, signature
            return
        try:
            frame = texts(read_part(part)).drop_nulls()
        except StoreError:
            if part.path.exists():
                self._damaged[name] = signature
            return
        self._damaged.pop(name, None)
        self._parts[name] = part, signature
        self._collection.add(frame)
        self._count(part, frame, signature[2] / 1e9)

    def _count(self, part: Part, frame: "pl.DataFrame", written: float) -> None:
        import polars as pl

        for cell, rows, step in frame.group_by("cell").agg(pl.len(), pl.col("step").max()).iter_rows():
            state = self._cells.setdefault(cell, _CellState())
            state.rows += rows
            state.step = max(state.step, step)
            state.changed = max(state.changed, written)
            state.writer_began = max(state.writer_began, part.writer_began)
            state.recent.append((written, rows))

    # -- how the run stands

    def _standing(self) -> dict[str, Any]:
        there = self.folder.is_dir()
        claimed = {claim.cell: claim for claim in claims(self.folder)}
        cells = [self._cell(cell, claimed.get(cell)) for cell in dict.fromkeys([*claimed, *self._cells])]
        cells.sort(key=lambda cell: (cell["started"], cell["cell"]), reverse=True)
        state, said = self._state(there, cells)
        return {
            "folder": str(self.folder),
            "state": state,
            "said": said,
            "cells": cells,
            "damaged": sorted(self._damaged),
            "dropped": self._collection.dropped,
        }

    def _state(self, there: bool, cells: list[dict[str, Any]]) -> tuple[str, str]:
        if self._trouble:
            return "trouble", self._trouble
        if not there:
            return ("gone", "The folder is gone; what was read of it is shown.") if self._cells else ("waiting", _NONE)
        if not self._cells:
            return "waiting", "No rows yet: the first appear within three seconds of the first step that is read."
        states = {cell["state"] for cell in cells if cell["rows"]}
        return next((state, "") for state in ("running", "quiet", "ended") if state in states)

    def _cell(self, cell: str, claim: CellClaim | None) -> dict[str, Any]:
        state = self._cells.get(cell, _CellState())
        now = time.time()
        since = max(0.0, now - state.changed) if state.rows else None
        recent = [(when, rows) for when, rows in state.recent if now - when < _RATE_OVER]
        over = max(now - min((when for when, _ in recent), default=now), 1.0)
        # A claim tells of the process that made it: a later writer may be another process.
        known = claim is not None and state.writer_began < claim.started + 30
        if known and claim is not None and claim.process_is_gone and (since is None or since > ENDED_FOR):
            standing = "ended"
        else:
            standing = "running" if since is not None and since < _QUIET else "quiet"
        return {
            "cell": cell,
            "rows": state.rows,
            "step": state.step if state.rows else None,
            "since": since,
            "rate": sum(rows for _, rows in recent) / over if standing == "running" else 0.0,
            "state": standing,
            "started": claim.started if claim is not None and claim.started else state.writer_began,
            "facts": _texts(claim.facts) if claim is not None else {},
            "stands_out": self._stands_out(cell),
        }

    def _stands_out(self, cell: str) -> list[str]:
        """Return the sentences on the records, and those of the findings that a scope left beside them."""
        if "/" in cell or "\\" in cell or cell.startswith("."):
            return []  # a name out of a part: no claim has such a name
        lines: list[str] = []
        if self._sentences is not None:
            lines += self._sentences.of(cell, sum(state.rows for state in self._cells.values()))
        try:
            findings = json.loads(_text_of(self.folder / f"findings-{cell}.json") or "{}")["findings"]
            lines += [f"{found['code']} ({found['severity']}): {found['message']}" for found in findings]
        except (ValueError, KeyError, TypeError):
            pass
        return [line for line in lines if line.strip()][:200]


_NONE = "The folder does not exist yet: the page fills when the training begins."


def _require_open_ended(folder: Path) -> None:
    """Raise UsageError where a folder holds something other than the records of scopes."""
    if not (folder / "run.json").exists():
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file; give the folder that a scope records to")
        runs = sorted(path.parent.name for path in folder.glob("*/run.json"))
        if runs:
            more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
            raise UsageError(f"{folder} holds runs; give the folder of one: {', '.join(runs[:5])}{more}")
        return
    config: Mapping[str, Any] = read_run(place_of(folder))["config"]
    if "study" in config or "studies" in config:
        raise UsageError(f"{folder} is the run of a study; its page is written by: normscope report {folder}")


def _signature(path: Path) -> Signature | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _text_of(path: Path) -> str:
    try:
        ordinary(path)
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_LARGEST_TEXT)
    except (OSError, DataError):
        return ""


def _texts(facts: Mapping[str, Any]) -> dict[str, str]:
    shown = {key: ", ".join(map(str, value)) if isinstance(value, list) else str(value) for key, value in facts.items()}
    return {key: text[:300] for key, text in list(shown.items())[:20]}
