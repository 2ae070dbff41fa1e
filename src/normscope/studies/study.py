"""What every study is: a claim, cells that differ in one thing, an endpoint and a margin fixed before the run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from normscope._errors import UsageError
from normscope._unit import Unit
from normscope.records import Cell, Estimate, Outcome, Record, Verdict
from normscope.stats import decide, interval
from normscope.studies.evidence import Evidence
from normscope.studies.judging import unmeasured

if TYPE_CHECKING:
    from normscope.plots import Figure, Table
    from normscope.studies.lab.data import Dataset

#: Called after every cell with (cells complete, cells in all, the cell or None at the start).
Progress = Callable[[int, int, Cell | None], None]


class AbstractStudy(Unit, ABC):
    """One claim about batch normalization, put to a test. A positive effect speaks for the claim.

    A study is found by its file being in this folder. Its docstring is its page; everything that decides its verdict
    (endpoint, margin, presets) is a class attribute, fixed before anything runs.

    Attributes:
        CARD: Number of the study in the catalogue of claims; a user's own has none and comes last.
        TOPIC: What it is about, in a word or two; studies are listed and filtered by it.
        CLAIM: The claim in a sentence, as its source makes it.
        ENDPOINT: What the primary verdict measures, in words.
        MARGIN: Smallest effect of interest of the primary endpoint, on the scale of its effect.
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
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]]
    VERSION: ClassVar[int] = 1
    EXTENSION: ClassVar[bool] = False
    #: Fingerprint of the file of a user's own study, which its runs remember; empty for those of the package.
    SOURCE_FILE: ClassVar[str] = ""

    @abstractmethod
    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the (arm, point) pairs that every seed runs.

        Args:
            settings: The preset's. Points are plain JSON values and become columns of the frame.
        """

    @abstractmethod
    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Run one cell and yield its records, which depend on the cell and the data alone."""

    def together(self, cell: Cell) -> bool:
        """Say whether ``run_cells`` takes all seeds of the cell's arm and point at once, because that is faster."""
        return False

    def run_cells(self, cells: Sequence[Cell], data: "Dataset", device: str) -> Iterable[tuple[Cell, Iterable[Record]]]:
        """Run cells that differ in their seed only, and yield each with the records of ``run_cell``, to rounding.

        Args:
            cells: Always the same seeds in company, whichever of them were asked for (``SEEDS_AT_ONCE`` in ``_run``).
            data: As ``run_cell`` takes it.
            device: Where.
        """
        for cell in cells:
            yield cell, self.run_cell(cell, data, device)

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

    def verdict(
        self,
        outcome: Outcome,
        effect: Estimate,
        *,
        reason: str,
        p_value: float | None,
        claim: str = "",
        endpoint: str = "",
        margin: float | None = None,
        primary: bool = False,
        parts: Sequence[Verdict] = (),
    ) -> Verdict:
        """Make a verdict of this study; what is left out is the study's own claim, endpoint and margin."""
        return Verdict(
            study=self.CODE,
            claim=claim or self.CLAIM,
            outcome=outcome,
            endpoint=endpoint or self.ENDPOINT,
            effect=effect,
            margin=self.MARGIN if margin is None else margin,
            reason=reason,
            sources=self.SOURCES,
            p_value=p_value,
            primary=primary,
            parts=tuple(parts),
        )

    def part(
        self,
        evidence: Evidence,
        values: ArrayLike,
        *,
        endpoint: str,
        reason: str | Callable[[Estimate], str],
        claim: str = "",
        scale: str = "difference",
        margin: float | None = None,
        refuted_below: float | None = None,
        primary: bool = False,
    ) -> Verdict:
        """Judge one endpoint from one number per seed.

        Args:
            evidence: Gives the level.
            values: One number per seed, positive in the direction of the claim; seeds whose number is not finite are
                left out, and the reason says so.
            endpoint: What was measured, in words.
            reason: A sentence, or what makes one of the estimate.
            claim: The claim; the study's own if left out.
            scale: What the numbers are: ``"difference"``, ``"log-ratio"`` or ``"value"``.
            margin: Smallest effect of interest; the study's own if left out.
            refuted_below: Where refutation begins, if not at the margin.
            primary: Whether this is the endpoint that decides the claim.
        """
        margin = self.MARGIN if margin is None else margin
        numbers = np.asarray(values, dtype=np.float64)
        kept = numbers[np.isfinite(numbers)]
        if not len(kept):
            effect = unmeasured(evidence.level, scale)
            outcome, p, said = Outcome.INCONCLUSIVE, 1.0, "Not one seed could be measured."
        else:
            effect = interval(kept, scale=scale, level=evidence.level)
            outcome, p = decide(kept, margin=margin, refuted_below=refuted_below, level=evidence.level, scale=scale)
            said = reason if isinstance(reason, str) else reason(effect)
            if len(kept) < len(numbers):
                said += f" {len(numbers) - len(kept)} of {len(numbers)} seeds could not be measured."
        return self.verdict(
            outcome, effect, reason=said, p_value=p, claim=claim, endpoint=endpoint, margin=margin, primary=primary
        )

    def run(
        self,
        *,
        out: str | Path = "runs",
        seeds: int = 10,
        preset: str = "quick",
        data: str = "digits",
        device: str = "cpu",
        workers: int | None = None,
        extend: bool = False,
        progress: Progress | None = None,
    ) -> Verdict:
        """Run the study, or what of it is not yet complete, and judge it: see ``normscope.studies.run``."""
        from normscope.studies.runs import run

        return run(
            self,
            out=out,
            seeds=seeds,
            preset=preset,
            data=data,
            device=device,
            workers=workers,
            extend=extend,
            progress=progress,
        )
