"""What is known of a scope beside its records: kept by the scope, written into its folder, read back from there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope._errors import DataError, StoreError, UsageError
from normscope.records import Finding, Store, provenance
from normscope.records.addresses import save
from normscope.records.json import build, loads, plain
from normscope.records.reading import text_of_file

if TYPE_CHECKING:
    import polars
    from torch.nn import Module

VERSION = 1


@dataclass(frozen=True, slots=True)
class CellFacts:
    """One cell of a scope: a run, or the share of a run that one process saw.

    Attributes:
        cell: Its name, as in the records.
        model: Class name of the model; empty if not known.
        modules: Class name of each module by its qualified name, in order of registration.
        steps: Number of training steps.
        rules: Codes of the rules that ran; None for a scope without rules.
        findings: What they found, worst first.
        notes: What else is to be said of the rules, in sentences: findings that are there on purpose.
        not_read: Why a probe or a rule was not read, by its code.
        wiring: Why what was read may be wrong, in sentences: how the scope and the loop do not fit.
    """

    cell: str
    model: str = ""
    modules: Mapping[str, str] = field(default_factory=dict)
    steps: int = 0
    rules: tuple[str, ...] | None = None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    not_read: Mapping[str, str] = field(default_factory=dict)
    wiring: tuple[str, ...] = ()

    def save(self, folder: Path) -> Path:
        """Write the facts into the folder of a run, as ``facts-CELL.json``.

        Raises:
            StoreError: The folder cannot be written.
        """
        document = {"version": VERSION} | {each.name: plain(getattr(self, each.name)) for each in fields(self)}
        return save(folder / f"facts-{self.cell}.json", json.dumps(document, indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a scope saw, or several scopes that recorded into one folder.

    Attributes:
        frame: The records.
        cells: Their facts, one for each cell.
        folder: Where the records lie; None if only in memory.
        provenance: What made the numbers: versions, machine, commit.
        damaged: Which files of the folder could not be read, and what is missing for it, in sentences.
    """

    frame: "polars.DataFrame"
    cells: tuple[CellFacts, ...]
    folder: Path | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell: no record, and no rule has run."""
        return self.frame.is_empty() and not any(cell.rules is not None and cell.steps for cell in self.cells)

    @property
    def order(self) -> list[str]:
        """Qualified names of the modules of all cells, in order of registration."""
        return [*dict.fromkeys(name for cell in self.cells for name in cell.modules)]

    @property
    def model(self) -> str:
        """Class names of the models, in words; empty if not known."""
        return ", ".join(dict.fromkeys(cell.model for cell in self.cells if cell.model))


def modules_of(model: "Module") -> dict[str, str]:
    """Return the class name of each module by its qualified name, in order of registration."""
    return {name: type(module).__name__ for name, module in model.named_modules() if name}


def is_scope(folder: str | Path) -> bool:
    """Return whether a path is the folder of a scope; also without a ``run.json`` that can be read."""
    try:
        return Store.open_scope(folder)[0].config.get("kind") == "scope"
    except StoreError:
        return False


def read(folder: str | Path) -> Seen:
    """Read the folder of a scope; nothing in it is touched.

    Args:
        folder: As given to a scope as ``record_to``.

    Raises:
        StoreError: There is no run, or its records are damaged.
        UsageError: It is the run of a study.
    """
    store, damaged = Store.open_scope(folder)
    if store.config.get("kind") != "scope":
        raise UsageError(f"{folder} is not the folder of a scope")
    frame = store.frame()
    known: dict[str, CellFacts] = {}
    for path in sorted(store.path.glob("facts-*.json")):
        try:
            facts = read_facts(path)
        except StoreError as error:
            damaged.append(f"{error}; the findings, the model and what was not read are missing here")
        else:
            known[facts.cell] = facts
    last = frame.group_by("cell").agg(step=frame_column("step").max()).rows()
    for cell, step in last:
        known.setdefault(str(cell), CellFacts(str(cell), steps=int(step) + 1))
    cells = tuple(known[cell] for cell in sorted(known))
    return Seen(frame, cells, store.path, dict(store.provenance), tuple(damaged))


def frame_column(name: str) -> Any:
    """Return a column of a frame, for an expression."""
    import polars

    return polars.col(name)


def in_memory(frame: "polars.DataFrame", cells: Sequence[CellFacts], folder: Path | None = None) -> Seen:
    """Return what a scope of this process saw."""
    return Seen(frame, tuple(cells), folder, provenance.collect())


def read_facts(path: Path) -> CellFacts:
    """Read the facts of a cell.

    Raises:
        StoreError: The file is damaged, or has another layout.
    """
    try:
        held = loads(text_of_file(path))
        version = held.pop("version")
        held.setdefault("wiring", [])  # files of older versions have none
        if version == VERSION:
            facts: CellFacts = build(CellFacts, held)
            return facts
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError, DataError):
        raise StoreError(f"{path} is damaged; the records stand without it") from None
    raise StoreError(f"{path} has layout {version}, this version reads {VERSION}; use the version that wrote it")
