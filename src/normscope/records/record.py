"""One measured value."""

from dataclasses import dataclass


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
