"""Where the gain and the shift of norms have gone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from normscope.modules.channels import channels, to_host
from normscope.modules.sites import chosen, norms, uses_batch
from normscope.probes._probe import AbstractProbe
from normscope.probes._remarks import Readings, Remark, Urgency, amount, beyond, percent
from normscope.probes._step import Step
from normscope.records import Record

_PARTS = ("weight", "bias")
_OFF = 0.05  # mean gain below which a norm passes next to nothing on; gains that begin at 0 are on purpose
_MOVED = 0.5  # root mean square over channels; gains begin at 1
_UNDONE = 0.05  # median share between the gain and the standard deviation


class AffineDrift(AbstractProbe):
    r"""Distance of a norm's gain and shift from the identity and from their start.

    ## Measures
    For each norm with a gain :math:`\gamma` (``weight``) or a shift :math:`\beta` (``bias``), as the step began:

    - ``weight_mean``, ``bias_mean``: means over channels;
    - ``weight_drift``, ``bias_drift``: root mean square over channels of :math:`\gamma - \gamma_0` and
      :math:`\beta - \beta_0`, the values at the first step that this probe read;
    - of batch norms ``weight_identity_gap``, ``bias_identity_gap``: medians over channels of
      :math:`|\gamma - \sigma| / \sigma` and :math:`|\beta - \mu| / \sigma`: with both at 0 the layer would undo its own
      normalization. :math:`\mu` and :math:`\sigma^2 = \mathrm{Var} + \epsilon` are those that the layer normalized by:
      of the user's own batch (the last call's), in eval mode the running ones.

    **State**: for each norm, gain and shift at its first reading. A probe used for another model starts anew.

    ## Cost
    Two reads of the input of each batch norm, shared with other probes.

    ## Reads wrongly when
    The probe is attached after training has begun: the start is then that of the probe. The layer is not affine: there
    is nothing to record. Gain and shift of half precision move in steps of their own rounding.

    Args:
        sites: Qualified names of norms; all if None.
        every: Read at every so-many-th step; None takes the scope's schedule.
    """

    CODE = "affine_drift"
    SHOWS = "weight_drift"
    QUESTION = "statistics"
    NOTHING = "no norm with a gain or a shift ran in this model"
    STREAMING = True
    SOURCES = (
        "Ioffe and Szegedy 2015, section 3 (arXiv:1502.03167): the identity",
        "Santurkar et al. 2018, observation 4.3 (arXiv:1805.11604)",
    )

    def __init__(self, sites: Sequence[str] | None = None, *, every: int | None = None) -> None:
        super().__init__(every=every)
        self.sites = None if sites is None else tuple(sites)
        self._start: WeakKeyDictionary[Module, dict[str, np.ndarray]] = WeakKeyDictionary()

    def watch(self, step: Step) -> None:
        """Keep gain and shift, and the statistics that batch norms are about to use."""
        layers = step.modules(norms) if self.sites is None else chosen(step.model, self.sites)
        found = step.notes(self).setdefault("found", {})
        for site, module in layers.items():
            values = {part: getattr(module, part, None) for part in _PARTS}
            kept = {part: value for part, value in values.items() if isinstance(value, Tensor)}
            if not kept:
                continue
            step.keep_values(kept.values())
            found[site] = (module, kept, {})
            if isinstance(module, _BatchNorm):
                step.on_input(self, module, partial(self._take, step, module, found[site][2]))

    @staticmethod
    def _take(step: Step, module: Module, statistics: dict[str, Any], x: Tensor) -> None:
        if uses_batch(module):
            moments = step.memo(x, "channels", channels)
            statistics.update(mean=moments.mean, variance=moments.variance)
        else:
            mean, variance = module.running_mean, module.running_var
            assert isinstance(mean, Tensor)
            assert isinstance(variance, Tensor)
            statistics.update(mean=mean.detach().clone(), variance=variance.detach().clone())

    def read(self, step: Step) -> Iterator[Record]:
        """Yield means, drifts and gaps of each norm, in the order of registration."""
        for site, (module, kept, statistics) in step.notes(self).get("found", {}).items():
            tensors = {part: step.value_before(value) for part, value in kept.items()} | statistics
            values = dict(zip(tensors, to_host(list(tensors.values())), strict=True))
            start = self._start.setdefault(module, {part: values[part].copy() for part in kept})
            for part in kept:
                moved = (values[part] - start[part]).ravel()
                yield self.record(step, site, f"{part}_mean", values[part].sum() / moved.size)
                yield self.record(step, site, f"{part}_drift", (moved.dot(moved) / moved.size) ** 0.5)
            if not statistics:
                continue
            sigma = np.sqrt(values["variance"] + getattr(module, "eps", 0.0))
            for part, undoing in (("weight", sigma), ("bias", values["mean"])):
                if part in kept:
                    gap = abs(values[part] - undoing) / sigma
                    yield self.record(step, site, f"{part}_identity_gap", _median(gap))

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of gains that have shrunk to nothing or moved far, and of norms that undo their own normalization."""
        first = readings.first("weight_mean")
        off = beyond(readings, "weight_mean", below=_OFF, size=True)
        shrunk = off and {site: value for site, value in off.values.items() if abs(first[site]) > _OFF}
        if off and shrunk:
            yield replace(off, values=shrunk, first=first[next(iter(shrunk))]).remark(
                "the gain of {site} has shrunk to {value}{since}: the layer is nearly switched off",
                "in {where} the gain has shrunk to nearly nothing, most in {site}: {value}{since}",
                amount,
                Urgency.COSTLY,
                "norm",
            )
        if moved := beyond(readings, "weight_drift", above=_MOVED):
            yield moved.remark(
                "the gain of {site} has moved by {value} from its start",
                "the gain has moved far from its start in {where}, most in {site}: by {value}",
                amount,
                Urgency.NOTABLE,
                "norm",
            )
        if undone := beyond(readings, "weight_identity_gap", below=_UNDONE):
            yield undone.remark(
                "the gain of {site} is within {value} of the standard deviation divided by: it undoes the scaling",
                "in {where} the gain undoes the scaling, most in {site}: within {value} of it",
                percent,
                Urgency.NOTABLE,
                "norm",
            )


def _median(values: np.ndarray) -> float:
    """Return the median, NaN if any value is; a third of the time of NumPy's."""
    ordered = np.sort(values)
    half = (ordered.size - 1) // 2
    return float((ordered[half] + ordered[-1 - half]) / 2) if ordered[-1] == ordered[-1] else float("nan")
