"""What every probe is: it reads a training step and yields records; it changes nothing."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

from torch.nn import Parameter

from normscope._errors import UsageError
from normscope._unit import Unit
from normscope.probes._step import Step
from normscope.probes.remarks import Readings, Remark, Theory
from normscope.records import Record, quick_record, quick_records

Values = Iterable[tuple[str, str, float]]
"""Sites, names and values."""
_NO_UNITS: Mapping[str, str] = {}


class AbstractProbe(Unit, ABC):
    """An instrument. Final subclasses implement ``read``, and ``watch`` if they read the user's own pass.

    A probe must leave no trace: it draws from no random stream of the user's, and writes to no tensor of the model. It
    keeps what it sees during a step in ``step.notes(self)``. What it needs from one step to the next (a first value to
    compare with) it keeps in itself, and changes in ``read`` only. Whatever it does inside ``step.replay`` is undone.

    Args:
        every: Read at every so-many-th step; None takes the scope's schedule.

    Attributes:
        QUESTION: The question that it helps to answer, by which ``ns.watch(probes="gradient")`` finds it.
        BY_DEFAULT: Whether a scope reads it where no probes are named.
        NOTHING: Why it has no values where it finds nothing to read, in words after "not read: ".
        REPLAYS: Whether it evaluates the loss again through ``step.replay``.
        COST: How many plain training steps a reading takes, from and to; None where it takes less than ten.
        STREAMING: Whether it is cheap enough to be read at every step: it reads only the user's own pass, and computes
            no eigenvalues.
        SHOWS: The quantity with the most telling picture.
        every: As given.
    """

    HEADINGS = ("Measures", "Cost", "Reads wrongly when")
    QUESTION: ClassVar[str] = ""
    BY_DEFAULT: ClassVar[bool] = False
    NOTHING: ClassVar[str] = "it found nothing to read in this model"
    REPLAYS: ClassVar[bool] = False
    COST: ClassVar[tuple[float, float] | None] = None
    STREAMING: ClassVar[bool] = False
    SHOWS: ClassVar[str] = ""

    def __init__(self, *, every: int | None = None) -> None:
        self.page()  # a probe that does not describe itself is refused here, not in the report
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise UsageError(f"{self.CODE}: every={every!r} must be a whole number of steps, 1 or more")
        self.every = every

    @property
    def replays(self) -> bool:
        """Whether this probe, with its options, evaluates the loss again."""
        return self.REPLAYS

    @classmethod
    def by_default(cls) -> "AbstractProbe | None":
        """Make the probe that a scope reads where no probes are named; None if it reads none of this class."""
        return cls() if cls.BY_DEFAULT else None

    def without_loss(self) -> "AbstractProbe | None":
        """Return the probe that is read in place of this one where there is no loss function; None if there is none."""
        return None if self.replays else self

    def watch(self, step: Step) -> None:
        """Ask the step for the inputs, outputs and gradients to read; called as the step begins."""

    def before_update(self, step: Step, parameters: Mapping[int, Parameter]) -> None:
        """Read gradients right before an optimizer changes these parameters (keyed by ``id``)."""

    @abstractmethod
    def read(self, step: Step) -> Iterator[Record]:
        """Yield the values of this step; called as the step ends."""

    def record(self, step: Step, site: str, name: str, value: float, unit: str = "1") -> Record:
        """Make a record of this probe."""
        return quick_record(step.cell, step.index, self.CODE, site, name, float(value), unit)

    def records(self, step: Step, values: Values, units: Mapping[str, str] = _NO_UNITS) -> Iterator[Record]:
        """Make records of this probe, of many at less cost than one by one.

        Args:
            step: The step.
            values: Site, name and value of each.
            units: Units by name; "1" for the other names.
        """
        return iter(quick_records(step.cell, step.index, self.CODE, values, units))

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Yield sentences on what stands out in this probe's records of one cell; nothing where all is as expected.

        Args:
            readings: The records.
        """
        return iter(())

    @classmethod
    def theory(cls, readings: Readings) -> Theory:
        """Return values that theory or experience gives for this model: (words, value) by the name of the quantity.

        Args:
            readings: The records.
        """
        return {}
