"""The loss along the gradient: how far a step can be trusted."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from normscope._errors import UsageError
from normscope.probes._probe import AbstractProbe, Step
from normscope.probes._replay import Evaluation, Replay, Vector, difference, norm
from normscope.records import Record

MATCHINGS = ("same-step", "relative-step", "predicted-decrease")


@dataclass(frozen=True, slots=True)
class _Point:
    """What was found at distance ``s`` along the gradient: the loss and the change of the gradient."""

    s: float
    loss: float
    change: float


class LandscapeAlongGradient(AbstractProbe):
    r"""Loss range, gradient predictiveness, effective smoothness and curvature along the gradient.

    ## Measures
    With :math:`g = \nabla L(\theta)` on the step's own batch at the parameters with which the step began, the loss and
    the gradient at :math:`\theta - s g` for s on a logarithmic grid. A matching says how s is chosen, so that networks
    whose gradients differ in scale are compared fairly:

    - ``same-step``: :math:`s = a\,\eta`, a from ``low`` to ``high``, :math:`\eta` the learning rate;
    - ``relative-step``: :math:`s \lVert g\rVert / \lVert\theta\rVert` over the range ``relative``;
    - ``predicted-decrease``: :math:`s \lVert g\rVert^2 = c\,L(\theta)`, c over the range ``decrease``.

    Each gives ``NAME@MATCHING`` for the names ``loss_min``, ``loss_max``, ``loss_range``, ``loss_log_range`` (log of
    max over min), ``gradient_difference``: :math:`\max_s \lVert\nabla L(\theta - s g) - g\rVert`,
    ``gradient_difference_relative``: the same over :math:`\lVert g\rVert`, and ``effective_beta``:
    :math:`\max_s \lVert\nabla L(\theta - s g) - g\rVert / (s \lVert g\rVert)`. Only effective beta also uses the
    ``dense`` steps far below the grid, at which it tends to :math:`\lVert H g\rVert / \lVert g\rVert`.

    Of the whole line: ``loss`` and ``gradient_norm`` at s = 0, and ``curvature``, :math:`g^T H g / g^T g`, by an exact
    Hessian-vector product through a double backward pass (by a central difference of gradients where an operation has
    no second derivative), filed also under each matching's name. For drawing, the points of the first matching:
    ``s@s=K`` and ``loss@s=K``, K = 0, 1, ...

    What is not finite is recorded so. Where s has no sense (no decrease predicted, zero gradient) values are NaN.

    ## Cost
    One forward and backward pass for each grid point, 1 for :math:`g` (shared with other probes) and 3 (linear
    layers) to 5 (convolutions) for the curvature: with the defaults, 6 points a matching and 3 dense ones, about 33
    plain steps; ``matchings=("same-step",), curvature=False`` takes 10. Memory: five copies of the parameters.

    ## Reads wrongly when
    ``loss_fn`` is not the loss of the loop, reaches parameters other than through the model, writes into the batch, or
    draws random numbers before the step begins. At very small s in float32 the change of the gradient drowns in
    rounding. With batch norm in train mode the loss is that of this batch as a whole, which is the intention. The grid
    is seen, not the line: a spike between two points is missed. ``curvature`` needs second derivatives that are right
    or refused: a custom autograd function that treats saved values as constants in its backward pass falsifies it.

    Args:
        lr: Learning rate; None takes that of the optimizer's first parameter group as the step begins.
        low: Smallest s in learning rates.
        high: Largest s in learning rates.
        points: Number of grid points a matching.
        dense: Further s in learning rates, for effective beta; for other matchings scaled to their first grid point
            as these are to ``low * lr``.
        matchings: Which matchings to take.
        relative: Range of the relative step.
        decrease: Range of the predicted decrease as a share of the loss.
        curvature: Whether to take the curvature.
        every: Read at every so-many-th step; None takes the scope's schedule.

    Raises:
        UsageError: An option is out of range.
    """

    CODE = "landscape"
    SOURCES = (
        "Santurkar et al. 2018, section 3.1-3.2, figure 4 (arXiv:1805.11604)",
        "Pearlmutter 1994, Fast Exact Multiplication by the Hessian",
    )
    REPLAYS = True

    def __init__(
        self,
        *,
        lr: float | None = None,
        low: float = 0.5,
        high: float = 4.0,
        points: int = 6,
        dense: Sequence[float] = (1e-3, 1e-2, 1e-1),
        matchings: Sequence[str] = MATCHINGS,
        relative: tuple[float, float] = (1e-3, 3e-2),
        decrease: tuple[float, float] = (0.02, 0.5),
        curvature: bool = True,
        every: int | None = None,
    ) -> None:
        super().__init__(every=every)
        unknown = [matching for matching in matchings if matching not in MATCHINGS]
        if unknown:
            raise UsageError(f"{self.CODE}: no matching {unknown[0]!r}; there are {', '.join(MATCHINGS)}")
        ranges = {"low, high": (low, high), "relative": relative, "decrease": decrease}
        for name, (least, most) in ranges.items():
            if not 0 < least <= most:
                raise UsageError(f"{self.CODE}: {name} must be a range of positive numbers, not {least}, {most}")
        if points < 1 or any(step <= 0 for step in dense) or (lr is not None and lr <= 0):
            raise UsageError(f"{self.CODE}: lr, points and the dense steps must be positive")
        self.lr, self.points, self.matchings = lr, points, tuple(matchings)
        self.curvature = curvature
        self._ranges = {"same-step": (low, high), "relative-step": relative, "predicted-decrease": decrease}
        self._dense = np.asarray(dense, dtype=float) / low

    def read(self, step: Step) -> Iterator[Record]:
        """Walk the line, and yield the values of every matching."""
        replay = step.replay
        lr = self.lr if self.lr is not None else step.lr
        if lr is None and "same-step" in self.matchings:
            raise UsageError("no learning rate: give the scope its optimizer, or the probe lr=")
        origin = replay.origin()
        length, loss = norm(origin.gradient), float(origin.loss)
        yield self.record(step, "", "loss", loss)
        yield self.record(step, "", "gradient_norm", length)
        curvature = self._curvature(replay, origin, length) if self.curvature else None
        if curvature is not None:
            yield self.record(step, "", "curvature", curvature)
        size = norm(replay.trainable(replay.start.flat))
        units = {
            "same-step": lr if lr is not None else math.nan,
            "relative-step": _ratio(size, length),
            "predicted-decrease": _ratio(loss, length**2),
        }
        seen: dict[float, _Point] = {}
        for matching in self.matchings:
            grid = np.geomspace(*self._ranges[matching], self.points) * units[matching]
            dense = self._dense * grid[0]
            usable = math.isfinite(units[matching]) and units[matching] > 0
            for s in {*grid.tolist(), *dense.tolist()} - seen.keys() if usable else ():
                seen[s] = self._look(replay, origin.gradient, s)
            nothing = _Point(math.nan, math.nan, math.nan)
            band = [seen.get(s, nothing) for s in grid.tolist()]
            tail = [seen.get(s, nothing) for s in dense.tolist()]
            yield from self._summary(step, matching, band, tail, length)
            if curvature is not None:
                yield self.record(step, "", f"curvature@{matching}", curvature)
            if matching == self.matchings[0]:
                for index, point in enumerate(band):
                    yield self.record(step, "", f"s@s={index}", point.s)
                    yield self.record(step, "", f"loss@s={index}", point.loss)

    def _look(self, replay: Replay, gradient: Vector, s: float) -> _Point:
        replay.move(gradient, s)
        there = replay.evaluate()
        return _Point(s, float(there.loss), norm(difference(there.gradient, gradient)))

    def _curvature(self, replay: Replay, origin: Evaluation, length: float) -> float:
        if not math.isfinite(length) or length == 0:
            return math.nan
        along = [part / length for part in origin.gradient]
        product = replay.hessian_product(along)
        return sum(float(torch.dot(p, q)) for p, q in zip(along, product, strict=True))

    def _summary(
        self, step: Step, matching: str, band: Sequence[_Point], tail: Sequence[_Point], length: float
    ) -> Iterator[Record]:
        losses = np.array([point.loss for point in band])
        # NumPy's minimum and maximum hand NaN on, so a line that leaves the numbers says so.
        least, most = float(losses.min()), float(losses.max())
        change = float(np.max([point.change for point in band]))
        betas = [_ratio(point.change, point.s * length) for point in (*band, *tail)]
        values = {
            "loss_min": least,
            "loss_max": most,
            "loss_range": most - least,
            "loss_log_range": math.log(most / least) if 0 < least <= most < math.inf else math.nan,
            "gradient_difference": change,
            "gradient_difference_relative": _ratio(change, length),
            "effective_beta": float(np.max(betas)),
        }
        for name, value in values.items():
            yield self.record(step, "", f"{name}@{matching}", value)


def _ratio(a: float, b: float) -> float:
    """``a / b`` with NaN in place of an error."""
    return a / b if b else math.nan
