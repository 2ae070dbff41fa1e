"""What can be run: a claim, the grid of its cells, how one cell is run, and how the records are judged."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from normscope._errors import UsageError, shown
from normscope._unit import Unit
from normscope.records import Cell, Record, Verdict
from normscope.studies.case_question import CaseQuestion
from normscope.studies.evidence import Evidence

if TYPE_CHECKING:
    from normscope.plots import Figure, Table
    from normscope.studies.lab.data import Dataset

T = TypeVar("T")

#: Called after every cell with (cells complete, cells in all, the cell or None at the start).
Progress = Callable[[int, int, Cell | None], None]

#: More points of a grid, or cells of a run, than these are a slip of the hand: they would run for years.
MOST_POINTS = 100_000
MOST_CELLS = 1_000_000


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
        DATA: Name of the data that it is run on if a run names none.
        ON_A_CASE: The question of a comparison that asks the claim of a network of the user's own, or why none does.
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
    DATA: ClassVar[str] = "digits"
    #: Whether its cells read the data that ``--data`` names; a study of random inputs does not.
    READS_DATA: ClassVar[bool] = True
    ON_A_CASE: ClassVar[CaseQuestion | str] = "it does not say which question of a comparison asks its claim"
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

        Raises:
            UsageError: The settings lack the list of a point's values.
        """
        for name, listed in self.POINTS.items():
            if not isinstance(settings.get(listed), Sequence) or isinstance(settings[listed], str):
                raise UsageError(
                    f"{self.CODE}: POINTS says that the setting {shown(listed)} lists the values of {shown(name)}: "
                    "give a preset with that list"
                )
        for values in itertools.product(*(settings[name] for name in self.POINTS.values())):
            for arm in self.ARMS:
                yield arm, dict(zip(self.POINTS, values, strict=True))

    def points(self, settings: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Return what `grid` yields, checked, for it may be a user's own.

        Raises:
            UsageError: It yields nothing, something other than pairs, or more than `MOST_POINTS`.
        """
        found: Any = self.grid(settings)
        if not isinstance(found, Iterable):
            raise UsageError(f"{self.CODE}: grid() returns {shown(found)}: it must yield an arm and a point each time")
        pairs: list[tuple[str, dict[str, Any]]] = []
        for pair in itertools.islice(found, MOST_POINTS + 1):
            match pair:
                case (str(arm), Mapping() as point):
                    pairs.append((arm, dict(point)))
                case _:
                    raise UsageError(
                        f"{self.CODE}: grid() yields {shown(pair)}: it must yield the name of an arm and a mapping"
                    )
        if not pairs:
            raise UsageError(f"{self.CODE} has no arm at any point, so there is nothing to run: fill ARMS and POINTS")
        if len(pairs) > MOST_POINTS:
            raise UsageError(f"{self.CODE}: its grid has more than {MOST_POINTS} points: list fewer values")
        return pairs

    def judged(self, evidence: Evidence) -> Verdict:
        """Return what `judge` returns, checked, for it may be a user's own.

        Raises:
            UsageError: It is no verdict.
        """
        found: Any = self.judge(evidence)
        if not isinstance(found, Verdict):
            raise UsageError(f"{self.CODE}: judge() returns {shown(found)}: it must return a Verdict")
        return found

    def takes(self, data: "Dataset") -> None:
        """Refuse data that the study cannot be run on: by default a text, which is for transformers.

        Raises:
            UsageError: They are such.
        """
        from normscope.studies.lab.text import Text

        if isinstance(data, Text):
            raise UsageError(f"{self.CODE} takes images or vectors, not text: leave --data out, or name others")

    def data_named(self, data: str | None) -> "Dataset":
        """Return the data of a name or path, the study's own for None.

        Raises:
            DataError: They cannot be read.
            UsageError: The study cannot be run on them.
        """
        from normscope.studies.lab.data import load

        found = load(self.DATA if data is None else data)
        self.takes(found)
        return found

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

    def drawn(self, evidence: Evidence) -> tuple["Figure", ...]:
        """Return what `figures` returns, checked, for it may be a user's own.

        Raises:
            UsageError: Something in it is no figure.
        """
        from normscope.plots import Figure

        return _all_of(Figure, self.figures(evidence), f"{self.CODE}: figures()")

    def tabulated(self, evidence: Evidence) -> tuple["Table", ...]:
        """Return what `tables` returns, checked as `drawn` does.

        Raises:
            UsageError: Something in it is no table.
        """
        from normscope.plots import Table

        return _all_of(Table, self.tables(evidence), f"{self.CODE}: tables()")

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

        Raises:
            UsageError: There are more than `MOST_CELLS`.
        """
        settings = dict(self.settings(preset))
        fixed = settings | {"data": data.fingerprint(), "device": device, "version": self.VERSION}
        points = self.points(settings)
        if len(points) * len(seeds) > MOST_CELLS:
            raise UsageError(
                f"{self.CODE}: {len(seeds)} seeds of {len(points)} cells are more than the {MOST_CELLS} that a run may "
                "have: ask for fewer seeds"
            )
        return [
            Cell(study=self.CODE, arm=arm, seed=seed, point=point, settings=fixed)
            for seed in seeds
            for arm, point in points
        ]


def _all_of(kind: type[T], found: Iterable[Any], method: str) -> tuple[T, ...]:
    kept = tuple(found)
    if odd := [each for each in kept if not isinstance(each, kind)]:
        raise UsageError(f"{method} gives {shown(odd[0])}: it must give instances of normscope.plots.{kind.__name__}")
    return kept


def presets(quick: Mapping[str, Any], **others: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the presets of a study, of which every other one inherits the settings of ``quick``.

    Args:
        quick: All settings of the preset ``quick``.
        others: By the name of another preset, the settings in which it differs.
    """
    return {"quick": dict(quick), **{name: {**quick, **changes} for name, changes in others.items()}}
