"""The loss along the gradient: how far a step can be trusted."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator

from normscope._errors import UsageError
from normscope.modules.values import same_bits
from normscope.probes._hessian import Hessian, drawn, generator, whole
from normscope.probes._probe import AbstractProbe
from normscope.probes._replay import Replay
from normscope.probes._step import Step
from normscope.probes._vectors import Vector, difference, dot, norm
from normscope.probes.remarks import Readings, Remark, Urgency, amount, decades, times
from normscope.records import Record

MATCHINGS = ("same-step", "relative-step", "predicted-decrease")
DIRECTIONS = ("gradient", "random", "filter")
_UPWARD = 2.0  # times the loss
_CHANGED = 2.0  # lengths of the gradient: it has turned round


@dataclass(frozen=True, slots=True)
class _Point:
    """The loss and the change of the gradient at distance ``s`` along the gradient."""

    s: float
    loss: float
    change: float


class LandscapeAlongGradient(AbstractProbe):
    r"""Loss range, gradient predictiveness, effective smoothness and curvature along the gradient.

    ## Measures
    With $g = \nabla L(\theta)$ on the step's own batch at the parameters with which the step began, the loss and
    the gradient at $\theta - s g$ for s on a logarithmic grid. A matching says how s is chosen, so that networks
    whose gradients differ in scale are compared fairly:

    - ``same-step``: $s = a\,\eta$, a from ``low`` to ``high``, $\eta$ the learning rate;
    - ``relative-step``: $s \lVert g\rVert / \lVert\theta\rVert$ over the range ``relative``;
    - ``predicted-decrease``: $s \lVert g\rVert^2 = c\,L(\theta)$, c over the range ``decrease``.

    Each gives ``NAME@MATCHING`` for the names ``loss_min``, ``loss_max``, ``loss_range``, ``loss_log_range`` (log of
    max over min), ``gradient_difference``: $\max_s \lVert\nabla L(\theta - s g) - g\rVert$,
    ``gradient_difference_relative``: the same over $\lVert g\rVert$, and ``effective_beta``:
    $\max_s \lVert\nabla L(\theta - s g) - g\rVert / (s \lVert g\rVert)$. Only effective beta also uses the
    ``dense`` steps far below the grid, at which it tends to $\lVert H g\rVert / \lVert g\rVert$.

    Of the whole line: ``loss`` and ``gradient_norm`` at s = 0, and ``curvature``, $g^T H g / g^T g$, by an exact
    Hessian-vector product through a double backward pass (by a central difference of gradients where an operation has
    no second derivative), filed also under each matching's name. For drawing, the points of the first matching:
    ``s@s=K`` and ``loss@s=K``, K = 0, 1, ...

    Other ``directions`` than the gradient are drawn afresh at each step: ``random`` from a normal distribution,
    ``filter`` with each filter of it scaled to the length of that filter of $\theta$, parameters of one axis left
    out (Li et al.). Both are then scaled to $\lVert g\rVert$, so that at the same s the walk is as far from
    $\theta$ as along the gradient. Their names begin with the direction: ``loss_range@random-same-step``,
    ``curvature@random`` ($d^T H d / d^T d$), ``s@random-s=K``.

    What is not finite is recorded so. Where s has no sense (no decrease predicted, zero gradient) values are NaN.

    ## Cost
    For each direction one forward and backward pass for each point, and 2 (linear layers) to 5 (convolutions) plain
    steps for the curvature; $g$ is that of the user's own pass where it is proven to be, else a pass shared with
    other probes. With the defaults, 6 points a matching and 3 dense ones, about 32 plain steps;
    ``matchings=("same-step",), curvature=False, points=9, dense=()`` takes 9, with ``gradients=False`` 4. Memory: seven
    copies of the parameters, and with the curvature the graph of a double backward pass.

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
        gradients: Whether to take gradients along the line; without them a point costs a forward pass, the names
            ``gradient_difference``, ``gradient_difference_relative`` and ``effective_beta`` are left out, and
            ``dense`` is not walked.
        directions: Along what to walk: ``"gradient"``, ``"random"``, ``"filter"``.
        seed: Seeds the probe's own random stream, together with the number of the step.
        every: Read at every so-many-th step; None takes the scope's schedule.

    Raises:
        UsageError: An option is out of range.
    """

    CODE = "landscape"
    SHOWS = "loss_range"
    QUESTION = "smoothness"
    SOURCES = (
        "Santurkar et al. 2018, section 3.1-3.2, figure 4 (arXiv:1805.11604)",
        "Li et al. 2018, Visualizing the Loss Landscape of Neural Nets, section 4 (arXiv:1712.09913)",
        "Pearlmutter 1994, Fast Exact Multiplication by the Hessian",
    )
    REPLAYS = True
    COST = (30.0, 36.0)  # with its defaults, on the models of `normscope bench probes`

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
        gradients: bool = True,
        directions: Sequence[str] = ("gradient",),
        seed: int = 0,
        every: int | None = None,
    ) -> None:
        super().__init__(every=every)
        unknown = [matching for matching in matchings if matching not in MATCHINGS]
        if unknown:
            raise UsageError(f"{self.CODE}: no matching {unknown[0]!r}; there are {', '.join(MATCHINGS)}")
        strange = [direction for direction in directions if direction not in DIRECTIONS]
        if strange or not directions:
            named = repr(strange[0]) if strange else "at all"
            raise UsageError(f"{self.CODE}: no direction {named}; there are {', '.join(DIRECTIONS)}")
        ranges = {"low, high": (low, high), "relative": relative, "decrease": decrease}
        for name, (least, most) in ranges.items():
            if not 0 < least <= most:
                raise UsageError(f"{self.CODE}: {name} must be a range of positive numbers, not {least}, {most}")
        if points < 1 or seed < 0 or any(step <= 0 for step in dense) or (lr is not None and lr <= 0):
            raise UsageError(f"{self.CODE}: lr, points and the dense steps must be positive, and seed not negative")
        self.lr, self.points, self.matchings = lr, points, tuple(matchings)
        self.curvature, self.gradients = curvature, gradients
        self.directions, self.seed = tuple(directions), seed
        self._ranges = {"same-step": (low, high), "relative-step": relative, "predicted-decrease": decrease}
        self._dense = np.asarray(dense if gradients else (), dtype=float) / low

    def read(self, step: Step) -> Iterator[Record]:
        """Walk the lines, and yield the values of every matching."""
        replay = step.replay
        lr = self.lr if self.lr is not None else step.lr
        if lr is None and "same-step" in self.matchings:
            raise UsageError("no learning rate: give the scope its optimizer, or the probe lr=")
        origin = replay.origin()
        length, loss = norm(origin.gradient), float(origin.loss)
        yield self.record(step, "", "loss", loss)
        yield self.record(step, "", "gradient_norm", length)
        size = norm(replay.trainable(replay.start.flat))
        units = {
            "same-step": lr if lr is not None else math.nan,
            "relative-step": _ratio(size, length),
            "predicted-decrease": _ratio(loss, length**2),
        }
        stream = generator(self.seed, step.index)
        for name in self.directions:
            prefix = "" if name == "gradient" else f"{name}-"
            direction = origin.gradient if name == "gradient" else _direction(replay, stream, name, length)
            yield from self._line(step, prefix, direction, length, units)

    def _line(
        self, step: Step, prefix: str, direction: Vector, length: float, units: Mapping[str, float]
    ) -> Iterator[Record]:
        replay = step.replay
        curvature = self._curvature(replay, direction, length) if self.curvature else None
        if curvature is not None:
            yield self.record(step, "", f"curvature@{prefix[:-1]}" if prefix else "curvature", curvature)
        points: dict[float, _Point] = {}
        for matching in self.matchings:
            grid = np.geomspace(*self._ranges[matching], self.points) * units[matching]
            dense = self._dense * grid[0]
            usable = math.isfinite(units[matching]) and units[matching] > 0
            for s in {*grid.tolist(), *dense.tolist()} - points.keys() if usable else ():
                points[s] = self._evaluate(replay, direction, s)
            nothing = _Point(math.nan, math.nan, math.nan)
            band = [points.get(s, nothing) for s in grid.tolist()]
            tail = [points.get(s, nothing) for s in dense.tolist()]
            yield from self._summary(step, prefix + matching, band, tail, length)
            if curvature is not None:
                yield self.record(step, "", f"curvature@{prefix}{matching}", curvature)
            if matching == self.matchings[0]:
                for index, point in enumerate(band):
                    yield self.record(step, "", f"s@{prefix}s={index}", point.s)
                    yield self.record(step, "", f"loss@{prefix}s={index}", point.loss)

    def _evaluate(self, replay: Replay, direction: Vector, s: float) -> _Point:
        replay.move(direction, s)
        there = replay.evaluate(gradient=self.gradients)
        if not self.gradients:
            return _Point(s, float(there.loss), math.nan)
        return _Point(s, float(there.loss), norm(difference(there.gradient, replay.origin().gradient)))

    def _curvature(self, replay: Replay, direction: Vector, length: float) -> float:
        if not math.isfinite(length) or length == 0:
            return math.nan
        along, hessian = [part / length for part in direction], Hessian.of(replay)
        # The product with the gradient is shared with other probes, where it is the same gradient to the bit.
        shared = all(map(same_bits, direction, hessian.gradient))
        return dot(along, hessian.along_gradient() if shared else hessian.product(along))

    def _summary(
        self, step: Step, matching: str, band: Sequence[_Point], tail: Sequence[_Point], length: float
    ) -> Iterator[Record]:
        losses = np.array([point.loss for point in band])
        # NumPy's minimum and maximum return NaN if any loss is NaN.
        least, most = float(losses.min()), float(losses.max())
        values = {
            "loss_min": least,
            "loss_max": most,
            "loss_range": most - least,
            "loss_log_range": math.log(most / least) if 0 < least <= most < math.inf else math.nan,
        }
        if self.gradients:
            change = float(np.max([point.change for point in band]))
            betas = [_ratio(point.change, point.s * length) for point in (*band, *tail)]
            values["gradient_difference"] = change
            values["gradient_difference_relative"] = _ratio(change, length)
            values["effective_beta"] = float(np.max(betas))
        for name, value in values.items():
            yield self.record(step, "", f"{name}@{matching}", value)

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of a loss that shoots up along the gradient, and of gradients that do not last a step."""
        for name in readings.named("loss_max"):
            highest, loss = readings.late(name).get("", math.nan), readings.late("loss").get("", math.nan)
            matching = name.partition("@")[2].replace("-", " ")
            if loss > 0 and highest / loss > _UPWARD:
                says = (
                    f"Along its gradient the loss rises to {times(highest / loss)} its value of {amount(loss)}, within "
                    f"the steps tried ({matching})."
                )
                yield Remark(says, Urgency.NOTABLE, decades(highest, loss), ("",), name)
                break
        for name in readings.named("gradient_difference_relative"):
            change = readings.late(name).get("", 0.0)
            if change > _CHANGED:
                says = (
                    f"Within the steps tried along the gradient ({name.partition('@')[2].replace('-', ' ')}) it "
                    f"changes by {amount(change)} times its own length, so it does not foretell the loss that far."
                )
                yield Remark(says, Urgency.NOTABLE, decades(change, _CHANGED), ("",), name)
                break


def _ratio(a: float, b: float) -> float:
    """``a / b`` with NaN in place of an error."""
    return a / b if b else math.nan


def _direction(replay: Replay, stream: Generator, name: str, length: float) -> Vector:
    """Draw a direction of the given length."""
    direction = drawn(replay, stream)
    if name == "filter":
        flat, theta = whole(replay, direction), whole(replay, replay.trainable(replay.start.flat))
        for slot in replay.slots:
            if not slot.trainable:
                continue
            own, weight = slot.of(flat), slot.of(theta)
            if own.ndim < 2:
                own.zero_()
                continue
            axes = tuple(range(1, own.ndim))
            lengths = [torch.linalg.vector_norm(part, dim=axes, keepdim=True) for part in (weight, own)]
            own.mul_(lengths[0] / lengths[1])
    size = norm(direction)
    return [part * (length / size) for part in direction] if size else direction
