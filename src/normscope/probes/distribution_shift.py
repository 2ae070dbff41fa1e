"""How far the distributions of units wander while a network trains."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from normscope._errors import UsageError
from normscope.modules.batches import kept, leading_tensor
from normscope.modules.rng import RngState
from normscope.modules.sites import chosen, pre_activations
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes.remarks import Readings, Remark, Urgency, amount, beyond
from normscope.records import Record

_MOVED = 1.0  # interquartile range: half of the values lie where a quarter lay
_RESHAPED = 0.5  # standard deviations


@dataclass(slots=True)
class _Unit:
    """The sorted values ``(units, values)`` of a site at its first and last reading, and the path length so far."""

    first: np.ndarray
    last: np.ndarray
    path: float = 0.0
    ranges: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _FixedBatch:
    """The batch on which a model is always read, the random streams for it, and the readings of its sites."""

    batch: Any
    streams: RngState
    sites: dict[str, _Unit] = field(default_factory=dict)


class DistributionShift(AbstractProbe):
    r"""Wasserstein path length and net displacement of each unit's distribution on a fixed batch.

    ## Measures
    With $P_t$ the empirical distribution of a unit's output (a channel, over samples and positions) on the same
    batch at each reading t, at the parameters with which the step began, $W_1$ the Wasserstein-1 distance (mean
    distance of sorted values), all averaged over the units of a site and divided by R, the mean interquartile range
    over units and readings so far:

    - ``shift``: $W_1(P_{t-1}, P_t)$, since the reading before;
    - ``path_length``: the sum of these since the first reading;
    - ``displacement``: $W_1(P_0, P_t)$;
    - ``shape_displacement`` (not divided by R): the same after taking from both their means and dividing both by their
      standard deviations: what moments do not say;
    - ``mean_drift`` and ``std_drift``: mean over units of $|\mu_t - \mu_0|$ and $|\sigma_t - \sigma_0|$.

    Sites are outputs of norms and of layers that bear weight: what the non-linearities see. The network runs in the
    user's modes from random streams kept at the first reading: dropout masks are the same each time.

    **State**: the fixed batch, random streams, and for each site first and last values and the path so far. A probe
    used for another model starts anew.

    ## Cost
    One forward pass on the fixed batch, a sort of at most ``sample`` values a unit, a copy of the parameters. Memory:
    two times that many values.

    ## Reads wrongly when
    The fixed batch is small: distances between samples of n values are about $1/\sqrt{n}$ of a standard
    deviation too long where the truth is near zero (not here for one and the same batch, but for its reading as a
    population). Units are not on axis 1 (transformers: ``unit_axis=-1``). A path grows with the number of readings if
    steps wobble: compare only at the same ``every``. Noise that a module draws from its own buffer is not held fixed.

    Args:
        batch: What ``loss_fn`` takes, of any structure; not to be changed. None keeps a copy of the first batch seen.
        sites: Qualified names of modules; every norm and every layer that bears weight if None.
        sample: Largest number of values a unit.
        unit_axis: Axis of the units in the output.
        every: Read at every so-many-th step; None takes the scope's schedule.

    Raises:
        UsageError: ``sample`` is below 2.
    """

    CODE = "distribution_shift"
    SHOWS = "displacement"
    QUESTION = "shift"
    NOTHING = "no layer that bears weight, and no norm, ran in this model"
    SOURCES = (
        "Ioffe and Szegedy 2015, section 4.1, figure 1 (arXiv:1502.03167): distributions over training",
        "Villani 2003, Topics in Optimal Transportation, section 2.2: distance on the line by sorting",
    )
    REPLAYS = True

    def __init__(
        self,
        batch: Any = None,
        sites: Sequence[str] | None = None,
        *,
        sample: int = 1024,
        unit_axis: int = 1,
        every: int | None = None,
    ) -> None:
        super().__init__(every=every)
        if sample < 2:
            raise UsageError(f"{self.CODE}: sample={sample} must be 2 or more")
        self.batch, self.sample, self.unit_axis = batch, sample, unit_axis
        self.sites = None if sites is None else tuple(sites)
        self._fixed: WeakKeyDictionary[Module, _FixedBatch] = WeakKeyDictionary()

    def read(self, step: Step) -> Iterator[Record]:
        """Run the fixed batch, and yield how far each site has come."""
        replay = step.replay
        known = self._fixed.get(step.model)
        if known is None:
            batch = kept(replay.batch) if self.batch is None else self.batch
            known = self._fixed[step.model] = _FixedBatch(batch, replay.start.rng)
        outputs: dict[str, list[np.ndarray]] = {}
        layers = step.modules(pre_activations) if self.sites is None else chosen(step.model, self.sites)
        handles = [module.register_forward_hook(partial(self._keep, outputs, site)) for site, module in layers.items()]
        try:
            replay.reset()
            replay.with_batch(known.batch, known.streams).evaluate(gradient=False)
        finally:
            for handle in handles:
                handle.remove()
        for site, calls in outputs.items():
            values = np.sort(np.concatenate(calls, axis=1), axis=1)
            yield from self._compare(step, site, values, known)

    def _keep(self, values: dict[str, list[np.ndarray]], site: str, _module: Module, _inputs: Any, output: Any) -> None:
        tensor = leading_tensor(output)
        if tensor is None or tensor.ndim < 2 or not tensor.numel():
            return
        by_unit = tensor.detach().movedim(self.unit_axis, 0).flatten(1)
        stride = -(-by_unit.shape[1] // self.sample)
        while stride > 1 and math.gcd(stride, by_unit.shape[1]) != 1:
            stride += 1
        values.setdefault(site, []).append(by_unit[:, ::stride].to(_wide(tensor)).cpu().numpy().copy())

    def _compare(self, step: Step, site: str, values: np.ndarray, known: _FixedBatch) -> Iterator[Record]:
        unit = known.sites.get(site)
        fresh = unit is None or unit.first.shape != values.shape
        if unit is None or fresh:
            unit = known.sites[site] = _Unit(values, values)
        shift = _distance(unit.last, values)
        unit.ranges.append(_range(values))
        unit.path, unit.last = unit.path + shift, values
        scale = math.fsum(unit.ranges) / len(unit.ranges)
        moved, widened = (
            abs(now - then).mean() for now, then in zip(_moments(values), _moments(unit.first), strict=True)
        )
        found = {
            "shift": shift,
            "path_length": unit.path,
            "displacement": _distance(unit.first, values),
            "mean_drift": float(moved),
            "std_drift": float(widened),
        }
        for name, value in found.items():
            if not (fresh and name == "shift"):
                yield self.record(step, site, name, value / scale if scale else math.nan)
        shapes = [_standardized(part) for part in (unit.first, values)]
        yield self.record(step, site, "shape_displacement", _distance(*shapes))

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of layers whose outputs have moved far on the fixed batch."""
        if moved := beyond(readings, "displacement", above=_MOVED):
            yield moved.remark(
                "the outputs of {site} have moved by {value} interquartile ranges since the first reading",
                "the outputs of {where} have moved far since the first reading, most of {site}: by {value} "
                "interquartile ranges",
                amount,
                Urgency.NOTABLE,
                "layer",
            )
        if shaped := beyond(readings, "shape_displacement", above=_RESHAPED):
            yield shaped.remark(
                "the outputs of {site} have changed their shape beyond mean and width: by {value} standard deviations",
                "the outputs of {where} have changed their shape, most of {site}: by {value} standard deviations",
                amount,
                Urgency.NOTABLE,
                "layer",
            )


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance of rows of sorted values, averaged over rows."""
    return float(np.abs(a - b).mean(dtype=np.float64))


def _range(values: np.ndarray) -> float:
    """Interquartile range, averaged over units."""
    low, high = np.array([0.25, 0.75]) * (values.shape[1] - 1)
    quartiles = [
        values[:, math.floor(at)] + (values[:, math.ceil(at)] - values[:, math.floor(at)]) * (at % 1)
        for at in (low, high)
    ]
    return float((quartiles[1] - quartiles[0]).mean(dtype=np.float64))


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(axis=1, dtype=np.float64), values.std(axis=1, dtype=np.float64)


def _standardized(values: np.ndarray) -> np.ndarray:
    mean, std = _moments(values)
    return (values - mean[:, None]) / np.where(std > 0, std, 1)[:, None]
