"""One measured value."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """A value that a probe read at one site at one step of one cell.

    Attributes:
        cell: Name of the run it belongs to; in a study the cell's configuration hash, else the scope's name.
        step: Optimizer steps taken before the step at which the value was read (the first step is 0).
        probe: Code of the probe.
        site: Qualified name of the module or parameter; ``""`` for the whole model.
        name: Which of the probe's quantities.
        value: The value, a plain float; NaN and infinities are allowed and kept.
        unit: Unit of the value; ``"1"`` if it has none.
    """

    cell: str
    step: int
    probe: str
    site: str
    name: str
    value: float
    unit: str = "1"


class _Draft:
    """The fields of a record while they are set; a frozen class sets each by a call, at three times the time in all."""

    __slots__ = ("cell", "name", "probe", "site", "step", "unit", "value")
    cell: str
    step: int
    probe: str
    site: str
    name: str
    value: float
    unit: str


_new = object.__new__
_NO_UNITS: Mapping[str, str] = {}


def quick_record(cell: str, step: int, probe: str, site: str, name: str, value: float, unit: str = "1") -> Record:
    """Make the record that ``Record`` makes of the same arguments, in a third of the time: a step has hundreds."""
    return quick_records(cell, step, probe, ((site, name, value),), {name: unit})[0]


def quick_records(
    cell: str,
    step: int,
    probe: str,
    values: Iterable[tuple[str, str, float]],
    units: Mapping[str, str] = _NO_UNITS,
) -> list[Record]:
    """Make the records of one probe at one step, without a call for each.

    Args:
        cell: As of ``Record``; so are the two that follow.
        step: Likewise.
        probe: Likewise.
        values: Site, name and value of each record.
        units: Units by name; "1" for the other names.
    """
    found: list[Any] = []
    for site, name, value in values:
        draft = _new(_Draft)
        draft.cell, draft.step, draft.probe, draft.site, draft.name = cell, step, probe, site, name
        draft.value, draft.unit = float(value), units.get(name, "1")
        draft.__class__ = Record  # type: ignore[assignment]  # of the same slots
        found.append(draft)
    return found
