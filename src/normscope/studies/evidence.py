"""The records of a run's complete seeds, and how a judge reads them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from normscope._errors import DataError
from normscope.plots import number
from normscope.stats import LEVEL, TWO_LOOKS_LEVEL

Floats = NDArray[np.float64]
_BEGIN_CLAUSES = ("with ", "without ", "in ")  # words for an arm that need no "with" before them
#: Columns of the records that do not tell one cell from another, apart from its seed.
_NOT_OF_A_CELL = ("seed", "step", "probe", "site", "name", "value", "unit")


def typical(values: Floats, *, logs: bool = False) -> str:
    """Write the mean over seeds, those without a value left out; of logarithms the geometric mean they stand for."""
    kept = values[np.isfinite(values)]
    if not len(kept):
        return ""
    mean = float(kept.mean())
    return number(math.exp(mean) if logs else mean)


@dataclass(frozen=True)
class Arrivals:
    """When runs reached a target.

    Attributes:
        steps: Steps (n,) per seed; a run that never got there counts as the horizon.
        missed: Which runs (n,) never got there, or diverged before.
        horizon: Steps of a run.
    """

    steps: Floats
    missed: NDArray[np.bool_]
    horizon: float


@dataclass(frozen=True)
class Evidence:
    """What a study is judged on.

    Attributes:
        frame: Records of the seeds of which every cell is complete; columns arm, seed, those of the points, step,
            probe, site, name, value, unit.
        settings: The preset's settings.
        seeds: Those seeds, in order: the replicates.
        level: Confidence level of the intervals.
        data: Name of the data, for captions.

    Raises:
        DataError: A seed stands twice.
    """

    frame: pl.DataFrame
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    level: float = LEVEL
    data: str = "digits"

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise DataError("a seed stands twice among the seeds: each replicate counts once")

    @property
    def looks(self) -> int:
        """How often the records may be looked at: twice where a run may be extended, by its level."""
        return 2 if self.level == TWO_LOOKS_LEVEL else 1

    @cached_property
    def chance(self) -> float:
        """Training accuracy at the first step, before any update, over all runs; NaN without such records."""
        first = self.select(probe="training", name="accuracy").filter(pl.col("step") == pl.col("step").min())
        mean = first["value"].mean()
        return float(mean) if isinstance(mean, float) else math.nan

    @cached_property
    def floor(self) -> float:
        """Accuracy at or below which a network has learnt nothing: 1.25 times chance."""
        return 1.25 * self.chance if math.isfinite(self.chance) else -math.inf

    def plateau(self, **where: Any) -> float:
        """Return the best arm's training accuracy at the end of training, over arms and learning rates.

        Args:
            where: The point of the grid; arm and learning rate are left out of it.
        """
        point = {key: value for key, value in where.items() if key not in ("arm", "lr")}
        key = repr(sorted(point.items()))
        if key not in self._plateaus:
            self._plateaus[key] = self._plateau(point)
        return self._plateaus[key]

    @cached_property
    def _plateaus(self) -> dict[str, float]:
        """Plateaus that were asked for: every arm of a point asks for the same."""
        return {}

    def _plateau(self, point: Mapping[str, Any]) -> float:
        found = self.select(probe="training", name="accuracy", **point)
        cells = [column for column in found.columns if column not in _NOT_OF_A_CELL]
        ends = found.group_by([*cells, "seed"]).agg(pl.col("value").sort_by("step").tail(20).mean())
        return float(ends.group_by(cells).agg(pl.col("value").mean())["value"].fill_nan(0.0).max() or 0.0)  # type: ignore[arg-type]

    def target(self, share: float, **where: Any) -> float:
        """Return the training accuracy that is a share of the way from chance to the plateau.

        Args:
            share: In (0, 1).
            where: The point of the grid.
        """
        chance = self.chance if math.isfinite(self.chance) else 0.0
        return chance + share * (self.plateau(**where) - chance)

    def select(
        self,
        *,
        probe: str | None = None,
        name: str | None = None,
        arm: str | Sequence[str] | None = None,
        site: str | None = None,
        before: float | None = None,
        **point: Any,
    ) -> pl.DataFrame:
        """Return the records that match.

        Args:
            probe: Code of the probe.
            name: Which of its quantities.
            arm: One arm or several.
            site: Module path.
            before: Only steps below this one.
            point: Values of the point's columns.
        """
        found = self.frame
        for column, value in {"probe": probe, "name": name, "site": site, **point}.items():
            if value is not None:
                found = found.filter(pl.col(column) == value)
        if arm is not None:
            found = found.filter(pl.col("arm").is_in([arm] if isinstance(arm, str) else list(arm)))
        if before is not None:
            found = found.filter(pl.col("step") < before)
        return found

    def per_seed(self, frame: pl.DataFrame, reduce: pl.Expr | None = None) -> Floats:
        """Reduce records to one number per seed.

        Args:
            frame: Records of one arm at one point.
            reduce: What to make of a seed's rows; the mean of the values if left out.

        Returns:
            Array (n,) in the order of ``seeds``; NaN where a seed has no rows.
        """
        rule = pl.col("value").mean() if reduce is None else reduce
        found = dict(frame.group_by("seed").agg(rule.alias("value")).select("seed", "value").iter_rows())
        return np.array([found.get(seed, np.nan) for seed in self.seeds], dtype=np.float64)

    def final(self, name: str, *, window: int = 20, **where: Any) -> Floats:
        """Return per seed the mean of the last ``window`` training records of a name (``"loss"``, ``"accuracy"``)."""
        frame = self.select(probe="training", name=name, **where)
        return self.per_seed(frame, pl.col("value").sort_by("step").tail(window).mean())

    def last(self, name: str, *, probe: str = "training", **where: Any) -> Floats:
        """Return per seed the last record of a name (``"test_accuracy"``)."""
        return self.per_seed(self.select(probe=probe, name=name, **where), pl.col("value").sort_by("step").last())

    def final_losses(self, labels: Mapping[str, str], **where: Any) -> str:
        """Say how the arms named by ``labels`` end, in a sentence for a caption."""
        finals = {label: typical(self.final("loss", arm=arm, **where)) for arm, label in labels.items()}
        said = {label: label if label.startswith(_BEGIN_CLAUSES) else f"with {label}" for label in finals}
        ends = (f"{end or 'not finite'} {said[label]}" for label, end in finals.items())
        return f"Mean loss of the last 20 steps: {', '.join(ends)}."

    def mean_log(self, frame: pl.DataFrame) -> Floats:
        """Return per seed the mean logarithm of the values that have one; NaN where none has."""
        return self.per_seed(
            frame.filter(pl.col("value").is_finite() & (pl.col("value") > 0)), pl.col("value").log().mean()
        )

    def curves(self, frame: pl.DataFrame) -> dict[int, tuple[Floats, Floats]]:
        """Return per seed the (steps, values) of the records of one quantity at one site, in order of steps."""
        ordered = frame.sort("step")
        return {
            seed: (part["step"].to_numpy(), part["value"].to_numpy())
            for (seed,), part in ordered.group_by(["seed"], maintain_order=True)
        }

    def accuracy(self, arm: str, name: str = "test_accuracy", **point: Any) -> Floats:
        """Return the accuracy at the end per seed; a run that diverged has none right."""
        return np.nan_to_num(self.last(name, arm=arm, **point), nan=0.0)

    def loss_difference(self, first: str, second: str, **point: Any) -> Floats:
        """Return per seed the largest difference of two arms' losses over steps.

        Infinite if one arm ended earlier, NaN if an arm has no losses.
        """
        one, other = (
            self.curves(self.select(probe="training", name="loss", arm=arm, **point)) for arm in (first, second)
        )
        found = []
        for seed in self.seeds:
            if seed not in one or seed not in other:
                found.append(np.nan)
                continue
            a, b = one[seed][1], other[seed][1]
            found.append(float(np.abs(a - b).max()) if len(a) == len(b) else np.inf)
        return np.array(found, dtype=np.float64)

    def arrivals(self, target: float, *, horizon: int | None = None, window: int = 5, **where: Any) -> Arrivals:
        """Return when the running mean of the training accuracy reached a target.

        Args:
            target: Accuracy in [0, 1].
            horizon: Steps of a run, those of the settings if left out: a seed that does not reach the target counts as
                this many (a restricted mean over seeds follows), and so does a seed that diverged.
            window: Steps of the running mean, which ends at the step reported.
            where: Arm and point.
        """
        end = int(self.settings["steps"]) if horizon is None else horizon
        curves = self.curves(self.select(probe="training", name="accuracy", **where))
        reached = np.full(len(self.seeds), np.inf)
        for index, seed in enumerate(self.seeds):
            if seed not in curves:
                continue
            steps, values = curves[seed]
            if len(values) >= window:
                smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
                hits = np.flatnonzero(smooth >= target - 1e-12)
                if len(hits):
                    reached[index] = steps[hits[0] + window - 1] + 1
        missed = reached > end
        return Arrivals(np.where(missed, float(end), reached), missed, float(end))
