"""How far running statistics are from the statistics of the batch, and how much loss this costs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from normscope.modules.call import modes_kept
from normscope.modules.channels import channels, to_host
from normscope.modules.sites import batch_norms, chosen, uses_batch
from normscope.probes._probe import AbstractProbe
from normscope.probes._replay import Replay
from normscope.probes._step import Step
from normscope.probes.remarks import Readings, Remark, Urgency, amount, beyond, percent
from normscope.records import Record

_LEAST = 1e-6  # of the loss: gaps below are rounding, and have no shares
_YOUNG = 50  # steps: before that running statistics are still those of their start, with torch's own momentum of 0.1
_INITIAL = math.exp(-5)  # share of the values at the start: running statistics have followed for 5 / momentum updates
_LAG, _FAR = 0.5, 2.0  # sigma; from the noise of a batch of 64 alone an eighth
_LAG_LOG, _FAR_LOG = math.log(1.5), math.log(5.0)  # of the variance; from the noise of a batch of 64 alone 1.2
_WORSE = 0.1  # of the loss in train mode


class StatisticsGap(AbstractProbe):
    r"""Running statistics against the batch's, and train loss against eval loss on one batch.

    ## Measures
    For each batch norm with running mean $r$ and running variance $v$ as the step began, and mean
    $\mu$ and unbiased variance $s^2$ over all that it takes in during the step (several calls are pooled by
    the law of total variance), over channels:

    - ``mean_gap``: root mean square of $(\mu - r) / \sqrt{v + \epsilon}$; from the noise of the batch alone
      about $1/\sqrt{m}$ for m independent values a channel;
    - ``variance_gap``: root mean square of $\log ((s^2 + \epsilon)/(v + \epsilon))$; from noise alone about
      $\sqrt{2/m}$;
    - ``initial_share``, only while it is above $e^{-5}$: the share that the values of the start still have in the
      running statistics, $(1 - \text{momentum})^n$ after n updates.

    On the step's batch, at the parameters and running statistics with which it began: ``train_loss`` in the modes of
    the user's pass, ``eval_loss`` with every module in eval mode, ``eval_gap``: the second less the first, and
    ``statistics_share``: the share of that gap which is there when only the batch norms go over to eval mode (the rest
    is dropout and its like, and how the two act together).

    ## Cost
    Three forward passes, and two reads of each layer's input, shared with other probes. Without ``loss`` no pass.

    ## Reads wrongly when
    Running statistics are young: ``num_batches_tracked`` times momentum below 5; nothing is said of them then. While
    weights move, running statistics lag behind by as far as weights move in 1/momentum steps, which is no defect: see
    what it costs by ``eval_gap``. The batch is small: see the noise above. Train and eval mode differ in what is
    computed beside normalization (auxiliary heads): then ``eval_gap`` is theirs too. A share of a gap below a millionth
    of the loss is NaN.

    Args:
        sites: Qualified names of batch norms; all that keep running statistics if None.
        loss: Whether to evaluate the losses.
        every: Read at every so-many-th step; None takes the scope's schedule.
    """

    CODE = "statistics_gap"
    SHOWS = "mean_gap"
    QUESTION = "statistics"
    BY_DEFAULT = True
    NOTHING = "no batch norm that keeps running statistics ran in this model"
    SOURCES = (
        "Wu and Johnson 2021, Rethinking 'Batch' in BatchNorm (arXiv:2105.07576)",
        "Ioffe and Szegedy 2015, section 3.1 (arXiv:1502.03167)",
    )
    REPLAYS = True

    def __init__(self, sites: Sequence[str] | None = None, *, loss: bool = True, every: int | None = None) -> None:
        super().__init__(every=every)
        self.sites, self.loss = None if sites is None else tuple(sites), loss

    @property
    def replays(self) -> bool:
        """Whether the losses are evaluated."""
        return self.loss

    @classmethod
    def by_default(cls) -> "StatisticsGap":
        """Make the probe without the losses: then it runs no pass."""
        return cls(loss=False)

    def without_loss(self) -> "StatisticsGap":
        """Return the probe without the losses."""
        return type(self)(self.sites, loss=False, every=self.every)

    def watch(self, step: Step) -> None:
        """Keep the running statistics, and take the moments of each layer's input."""
        layers: Mapping[str, Module] = (
            step.modules(batch_norms) if self.sites is None else chosen(step.model, self.sites)
        )
        notes = step.notes(self).setdefault("layers", {})
        for site, module in layers.items():
            mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
            if isinstance(mean, Tensor) and isinstance(variance, Tensor):
                kept = torch.stack([mean.detach().double(), variance.detach().double()])
                tracked = getattr(module, "num_batches_tracked", None)
                updates = tracked.detach().clone() if isinstance(tracked, Tensor) else torch.tensor(math.nan)
                notes[site] = (module, kept, [], updates)
                step.on_input(self, module, partial(self._take, step, notes[site][2]))

    @staticmethod
    def _take(step: Step, calls: list[tuple[Tensor, int]], x: Tensor) -> None:
        if x.numel():
            moments = step.memo(x, "channels", channels)
            calls.append((torch.stack([moments.mean.double(), moments.variance.double()]), moments.count))

    def read(self, step: Step) -> Iterator[Record]:
        """Yield the gaps of each layer, then the losses."""
        layers = {site: found for site, found in step.notes(self).get("layers", {}).items() if found[2]}
        for site, (module, kept, calls, updates) in layers.items():
            (running, tracked, *batches) = to_host([kept, updates, *(stacked for stacked, _ in calls)])
            counts = np.array([count for _, count in calls], dtype=float)
            means, variances = np.stack(batches, axis=1)
            count, eps = counts.sum(), float(getattr(module, "eps", 0.0))
            with np.errstate(all="ignore"):  # moments may be infinite
                mean = counts @ means / count
                spread = counts @ (variances + (means - mean) ** 2) / max(count - 1, 1)
                shift = (mean - running[0]) / np.sqrt(running[1] + eps)
                scale = np.log((spread + eps) / (running[1] + eps))
            yield self.record(step, site, "mean_gap", _rms(shift))
            yield self.record(step, site, "variance_gap", _rms(scale))
            if (share := _initial_share(module, float(tracked))) > _INITIAL:
                yield self.record(step, site, "initial_share", share)
        if self.loss:
            yield from self._losses(step)

    def _losses(self, step: Step) -> Iterator[Record]:
        replay = step.replay
        norms = set(step.modules(batch_norms).values())
        train = _loss(replay, lambda module, mode: mode)
        held = _loss(replay, lambda module, mode: False)
        using = any(uses_batch(module) for module in norms)
        only = _loss(replay, lambda module, mode: mode and module not in norms) if using else train
        gap = held - train
        yield self.record(step, "", "train_loss", train)
        yield self.record(step, "", "eval_loss", held)
        yield self.record(step, "", "eval_gap", gap)
        clear = abs(gap) > _LEAST * abs(train)
        yield self.record(step, "", "statistics_share", (only - train) / gap if clear else math.nan)

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of running statistics that lag behind the batch, and of a loss that eval mode raises."""
        followed = _followed(readings)
        if followed.last_step >= _YOUNG:
            if mean := beyond(followed, "mean_gap", above=_LAG):
                yield mean.remark(
                    "the running mean of {site} lags behind the batch by {value} sigma",
                    "the running mean lags behind the batch in {where}, most in {site}: by {value} sigma",
                    amount,
                    Urgency.COSTLY if mean.value > _FAR else Urgency.NOTABLE,
                    "batch norm",
                )
            if variance := beyond(followed, "variance_gap", above=_LAG_LOG):
                yield variance.remark(
                    "the running variance of {site} is off from the batch's by a factor of {value}",
                    "the running variance is off from the batch's in {where}, most in {site}: by a factor of {value}",
                    lambda gap: amount(math.exp(min(gap, 700.0))),
                    Urgency.COSTLY if variance.value > _FAR_LOG else Urgency.NOTABLE,
                    "batch norm",
                )
        train, held = (readings.late(name).get("") for name in ("train_loss", "eval_loss"))
        if readings.last_step < _YOUNG or train is None or held is None:
            return
        if held - train > _WORSE * abs(train):
            share = readings.late("statistics_share").get("", 0.0)
            cause = f"; running statistics make {percent(share)} of the difference" if 0 < share <= 1 else ""
            says = f"In eval mode the loss of the same batch is {amount(held)}, in train mode {amount(train)}{cause}."
            yield Remark(says, Urgency.COSTLY, (held - train) / max(abs(train), 1e-12) / 10, ("",), "eval_gap")


def _loss(replay: Replay, mode_of: Callable[[Module, bool], bool]) -> float:
    """Evaluate the loss in other modes, then set the modes of the user's pass again."""
    with modes_kept(module for module, _ in replay.start.conditions.modes):
        for module, mode in replay.start.conditions.modes:
            module.training = mode_of(module, mode)
        replay.reset()
        return float(replay.evaluate(gradient=False).loss)


def _initial_share(module: Module, updates: float) -> float:
    """Return the share of the start in the running statistics; NaN where that is not known."""
    momentum = getattr(module, "momentum", 0.0)
    if momentum is None:  # the plain average of all batches
        return float(updates == 0)
    weight = float(momentum)
    return float((1 - weight) ** updates) if 0 < weight <= 1 else math.nan


def _followed(readings: Readings) -> Readings:
    """Return the readings at which running statistics had had the time to follow, layer by layer."""
    young = {site: series[-1][0] for site, series in readings.values.get("initial_share", {}).items() if series}
    return Readings(
        {
            name: {
                site: [(step, value) for step, value in series if step > young.get(site, -1)]
                for site, series in sites.items()
            }
            for name, sites in readings.values.items()
        },
        readings.kinds,
    )


def _rms(values: np.ndarray) -> float:
    return math.sqrt(values.dot(values) / values.size)
