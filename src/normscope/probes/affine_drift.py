"""Where the gain and the shift of norms have gone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from normscope.modules.channels import to_host
from normscope.modules.contents import Content
from normscope.modules.sites import chosen, norms, uses_batch
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes.remarks import Readings, Remark, Urgency, amount, beyond, percent
from normscope.records import Record

_PARTS = ("weight", "bias")
_OFF = 0.05  # mean gain below which a norm passes next to nothing on; gains that begin at 0 are on purpose
_MOVED = 0.5  # root mean square over channels; gains begin at 1
_UNDONE = 0.05  # median share between the gain and the standard deviation


@dataclass(slots=True)
class _Layer:
    """A norm, its gain and shift, and the statistics that it used: of the batch, or running mean and variance."""

    module: Module
    kept: dict[str, Tensor]
    statistics: Content | tuple[Tensor, Tensor] | None = None


class _Row(NamedTuple):
    """Gain or shift of a norm, at its start, what it would be to undo the normalization, and sigma."""

    values: np.ndarray
    start: np.ndarray
    undoing: np.ndarray | None
    sigma: np.ndarray | None


class AffineDrift(AbstractProbe):
    r"""Distance of a norm's gain and shift from the identity and from their start.

    ## Measures
    For each norm with a gain $\gamma$ (``weight``) or a shift $\beta$ (``bias``), as the step began:

    - ``weight_mean``, ``bias_mean``: means over channels;
    - ``weight_drift``, ``bias_drift``: root mean square over channels of $\gamma - \gamma_0$ and
      $\beta - \beta_0$, the values at the first step that this probe read;
    - of batch norms ``weight_identity_gap``, ``bias_identity_gap``: medians over channels of
      $|\gamma - \sigma| / \sigma$ and $|\beta - \mu| / \sigma$: with both at 0 the layer would undo its own
      normalization. $\mu$ and $\sigma^2 = \mathrm{Var} + \epsilon$ are those that the layer normalized by:
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
        found: dict[str, _Layer] = step.notes(self).setdefault("found", {})
        for site, module in layers.items():
            values = {part: getattr(module, part, None) for part in _PARTS}
            kept = {part: value for part, value in values.items() if isinstance(value, Tensor)}
            if not kept:
                continue
            step.keep_values(kept.values())
            found[site] = layer = _Layer(module, kept)
            if isinstance(module, _BatchNorm):
                step.on_input(self, module, partial(self._take, step, layer))

    @staticmethod
    def _take(step: Step, layer: _Layer, x: Tensor) -> None:
        module = layer.module
        if uses_batch(module):
            layer.statistics = step.content(x) if x.numel() else None
        else:
            mean, variance = module.running_mean, module.running_var
            assert isinstance(mean, Tensor)
            assert isinstance(variance, Tensor)
            layer.statistics = mean.detach().clone(), variance.detach().clone()

    def read(self, step: Step) -> Iterator[Record]:
        """Yield means, drifts and gaps of each norm, in the order of registration."""
        return self.records(step, self._values(step))

    def _values(self, step: Step) -> Iterator[tuple[str, str, float]]:
        found: dict[str, _Layer] = step.notes(self).get("found", {})
        if not found:
            return
        step.settle()
        held = [[*map(step.value_before, layer.kept.values()), *_running(layer.statistics)] for layer in found.values()]
        brought = iter(to_host([tensor for tensors in held for tensor in tensors]))
        rows: list[_Row] = []
        for layer in found.values():
            values = {part: next(brought).ravel() for part in layer.kept}
            start = self._start.setdefault(layer.module, {part: value.copy() for part, value in values.items()})
            if isinstance(layer.statistics, tuple):
                undoing = {"bias": next(brought), "weight": next(brought)}
            elif layer.statistics is not None:
                undoing = {"bias": layer.statistics.mean, "weight": layer.statistics.variance}
            else:
                undoing = {}
            if undoing:
                undoing["weight"] = np.sqrt(undoing["weight"] + getattr(layer.module, "eps", 0.0))
            for part, value in values.items():
                rows.append(_Row(value, start[part], undoing.get(part), undoing.get("weight")))
        results = iter(_results(rows))
        for site, layer in found.items():
            parts = {part: next(results) for part in layer.kept}
            for part, (mean, drift, *_) in parts.items():
                yield site, f"{part}_mean", mean
                yield site, f"{part}_drift", drift
            for part, (_, _, *gap) in parts.items():
                for away in gap:
                    yield site, f"{part}_identity_gap", away

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


def _running(statistics: Any) -> tuple[Tensor, ...]:
    return statistics if isinstance(statistics, tuple) else ()


def _results(rows: Sequence[_Row]) -> list[list[float]]:
    """Return mean, drift and identity gap of each row; rows of one width are worked on together."""
    alike: dict[tuple[int, bool], list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault((row.values.size, row.undoing is None), []).append(index)
    found: list[list[float]] = [[]] * len(rows)
    for (width, bare), indices in alike.items():
        values, start = (np.array([getattr(rows[index], name) for index in indices]) for name in ("values", "start"))
        with np.errstate(all="ignore"):
            columns = [np.add.reduce(values, 1) / width, np.sqrt(np.add.reduce((values - start) ** 2, 1) / width)]
            if not bare:
                undoing, sigma = (np.array([getattr(rows[i], name) for i in indices]) for name in ("undoing", "sigma"))
                columns.append(_medians(abs(values - undoing) / sigma))
        for index, row in zip(indices, np.transpose(columns).tolist(), strict=True):
            found[index] = row
    return found


def _medians(rows: np.ndarray) -> np.ndarray:
    """Return the median of each row, NaN if any value is; a third of the time of NumPy's."""
    ordered = np.sort(rows, axis=1)
    half = (rows.shape[1] - 1) // 2
    return np.where(np.isnan(ordered[:, -1]), np.nan, (ordered[:, half] + ordered[:, -1 - half]) / 2)
