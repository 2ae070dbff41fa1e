"""What can be run: a claim, the grid of its cells, how one cell is run, and how the records are judged."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from normscope._errors import UsageError
from normscope._unit import Unit
from normscope.records import Cell, Record, Verdict
from normscope.studies.evidence import Evidence

if TYPE_CHECKING:
    from normscope.plots import Figure, Table
    from normscope.studies.lab.data import Dataset

#: Called after every cell with (cells complete, cells in all, the cell or None at the start).
Progress = Callable[[int, int, Cell | None], None]


class AbstractExperiment(Unit, ABC):
    """What the runner asks of a study: its settings, its cells, the records of a cell, and the verdict on all records.

    ``AbstractStudy`` adds how a study is judged and drawn, and is the class to derive from. Everything that decides a
    verdict (endpoint, margin, presets) is a class attribute, fixed before anything runs.

    Attributes:
        CARD: Number of the study in the catalogue of claims; a user's own has none and comes last.
        TOPIC: What it is about, in a word or two; studies are listed and filtered by it.
        CLAIM: The claim in a sentence, as its source makes it.
        ENDPOINT: What the primary verdict measures, in words.
        MARGIN: Smallest effect that matters, on the scale of the headline's effect.
        MARGIN_REASON: Why a smaller effect does not matter, in a line.
        PRESETS: By name, everything that a run can vary: sizes, learning rates, steps, arms. Plain JSON values.
        VERSION: Raised when the procedure changes, so that older cells are not taken for new ones.
        EXTENSION: Whether it judges what no sentence of the source texts says (see ``data/texts.toml``).
    """

    HEADINGS = ("Claim", "Method", "Prediction", "Threats")
    CARD: ClassVar[int] = 1000
    TOPIC: ClassVar[str]
    CLAIM: ClassVar[str]
    ENDPOINT: ClassVar[str]
    MARGIN: ClassVar[float]
    MARGIN_REASON: ClassVar[str] = ""
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]]
    VERSION: ClassVar[int] = 1
    EXTENSION: ClassVar[bool] = False
    #: The arms, by their name in the records: in words, or an ``Arm``, which says how its network is normalized too.
    ARMS: ClassVar[Mapping[str, Any]] = {}
    #: What varies besides the arm: name of the point's value -> name of the setting that lists the values.
    POINTS: ClassVar[Mapping[str, str]] = {}
    #: Fingerprint of the file of a user's own study, which its runs remember; empty for those of the package.
    SOURCE_FILE: ClassVar[str] = ""
    #: That file, whose lines are named where it raises.
    SOURCE_PATH: ClassVar[str] = ""

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the (arm, point) pairs that every seed runs: by default every arm at every combination of ``POINTS``.

        Args:
            settings: The preset's. Points are plain JSON values and become columns of the frame.
        """
        for values in itertools.product(*(settings[name] for name in self.POINTS.values())):
            for arm in self.ARMS:
                yield arm, dict(zip(self.POINTS, values, strict=True))

    @abstractmethod
    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Run one cell and yield its records, which depend on the cell and the data alone."""

    def together(self, cell: Cell) -> bool:
        """Say whether ``run_cells`` takes all seeds of the cell's arm and point at once, because that is faster."""
        return False

    def run_cells(self, cells: Sequence[Cell], data: "Dataset", device: str) -> Iterable[tuple[Cell, Iterable[Record]]]:
        """Run cells that differ in their seed only, and yield each with the records of ``run_cell``, to rounding.

        Args:
            cells: Always the same seeds in company, whichever of them were asked for (``SEEDS_AT_ONCE`` in ``cells``).
            data: As ``run_cell`` takes it.
            device: Where.
        """
        for cell in cells:
            yield cell, self.run_cell(cell, data, device)

    def foresee(self, settings: Mapping[str, Any]) -> None:
        """Refuse, before anything is run, what no record could make right.

        Args:
            settings: The preset's.

        Raises:
            UsageError: The study cannot be judged, whatever its cells record.
        """

    @abstractmethod
    def judge(self, evidence: Evidence) -> Verdict:
        """Reduce the records of complete seeds to the primary verdict, with the others as its parts."""

    def figures(self, evidence: Evidence) -> Sequence["Figure"]:
        """Draw what answers the claim."""
        return ()

    def tables(self, evidence: Evidence) -> Sequence["Table"]:
        """Tabulate the numbers behind the figures."""
        return ()

    def settings(self, preset: str) -> Mapping[str, Any]:
        """Return the settings of a preset.

        Raises:
            UsageError: The study has no preset of that name.
        """
        if preset not in self.PRESETS:
            raise UsageError(f"{self.CODE} has no preset {preset!r}: use {' or '.join(self.PRESETS)}")
        return self.PRESETS[preset]

    def cells(self, preset: str, seeds: Sequence[int], data: "Dataset", device: str = "cpu") -> list[Cell]:
        """List every cell of a run, seed by seed, so that an interrupted run has whole seeds to judge.

        Args:
            preset: Name of the preset.
            seeds: Replicates.
            data: What is trained on; its content, not its path, is part of a cell's name.
            device: Where it runs; numbers differ between devices, so it is part of a cell's name too.
        """
        settings = dict(self.settings(preset))
        fixed = settings | {"data": data.fingerprint(), "device": device, "version": self.VERSION}
        return [
            Cell(study=self.CODE, arm=arm, seed=seed, point=dict(point), settings=fixed)
            for seed in seeds
            for arm, point in self.grid(settings)
        ]


def presets(quick: Mapping[str, Any], **others: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the presets of a study, of which every other one inherits the settings of ``quick``.

    Args:
        quick: All settings of the preset ``quick``.
        others: By the name of another preset, the settings in which it differs.
    """
    return {"quick": dict(quick), **{name: {**quick, **changes} for name, changes in others.items()}}
