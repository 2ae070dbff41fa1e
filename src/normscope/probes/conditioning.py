"""How well conditioned the inputs of layers are."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.modules.conv import _ConvNd

from normscope._errors import UsageError
from normscope.modules.channels import coprime_stride
from normscope.modules.sites import chosen, weight_layers
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes.remarks import Readings, Remark, Urgency, amount, beyond
from normscope.records import Record

_TOP = 3
_ILL = 1000.0  # condition number: gradient descent needs as many steps for the flattest of these directions
_ONE_DIRECTION = 50.0  # largest over mean eigenvalue


class Conditioning(AbstractProbe):
    r"""Spectrum of the second moment of layer inputs, and of the Fisher information of the last layer.

    ## Measures
    For each layer that bears weight, with $h$ its input vector (of a convolution: the channels at a position) and
    $\lambda_1 \ge \lambda_2 \ge \dots \ge \lambda_d$ the eigenvalues of $E[h h^T]$, uncentred, over samples
    and positions of the user's own pass:

    - ``top_over_mean``: $\lambda_1$ over the mean of all; ``outlier``: over the mean of all others,
      $1 + d/(\pi - 1)$ after ReLU on normal values;
    - ``condition_95``: $\lambda_1/\lambda_k$, k the smallest number for which the first k sum to 95 % of the
      trace; ``condition_100``: $\lambda_1/\lambda_d$, infinite where the moment is singular.

    Of the last layer, if it is linear and the loss is the softmax cross-entropy of its output (found out by the
    gradient: output probabilities less the gradient per sample must be one-hot): ``fisher_1`` to ``fisher_3``, the top
    eigenvalues of the Fisher information of its weight,
    $E[(\mathrm{diag}(p) - p p^T) \otimes h h^T]$, which is also its block of the Gauss-Newton matrix.

    More than ``sample`` vectors are subsampled: every k-th, k having no factor in common with their number.

    ## Cost
    One product and one eigendecomposition of the smaller of ``sample`` and d a layer, in float64 on the host: some
    milliseconds for 128, a quarter of a second for 1024: not for every step of a small network.

    ## Reads wrongly when
    There are fewer vectors than some tens a dimension: small eigenvalues come out too small, ``condition_100`` first,
    and it is infinite with fewer than d. For convolutions the correlation between neighbouring positions is left out.
    With label smoothing, class weights, another reduction than mean or sum, or a loss scale there is no Fisher value.

    Args:
        sites: Qualified names of layers; all that bear weight if None.
        sample: Largest number of input vectors.
        fisher: Whether to look at the last layer's Fisher information.
        every: Read at every so-many-th step; None takes the scope's schedule.

    Raises:
        UsageError: ``sample`` is below 2.
    """

    CODE = "conditioning"
    SHOWS = "top_over_mean"
    QUESTION = "sharpness"
    NOTHING = "no linear or convolutional layer ran in this model"
    SOURCES = (
        "Huang et al. 2020, Layer-wise Conditioning Analysis (arXiv:2002.10801)",
        "LeCun et al. 1998, Efficient BackProp, section 4.3",
        "Martens 2014, New Insights on the Natural Gradient, section 9 (arXiv:1412.1193)",
    )

    def __init__(
        self,
        sites: Sequence[str] | None = None,
        *,
        sample: int = 1024,
        fisher: bool = True,
        every: int | None = None,
    ) -> None:
        super().__init__(every=every)
        if sample < 2:
            raise UsageError(f"{self.CODE}: sample={sample} must be 2 or more")
        self.sites = None if sites is None else tuple(sites)
        self.sample, self.fisher = sample, fisher

    def watch(self, step: Step) -> None:
        """Keep some input vectors of each layer, and the output and its gradient of the last."""
        layers = step.modules(weight_layers) if self.sites is None else chosen(step.model, self.sites)
        for site, module in layers.items():
            step.on_input(self, module, partial(self._take, step, site, module))
        if self.fisher:
            for site, module in step.modules(weight_layers).items():
                step.on_call(self, module, partial(self._called, step, site, module))

    def _take(self, step: Step, site: str, module: Module, x: Tensor) -> None:
        vectors = _vectors(module, x)
        if vectors.numel():
            step.notes(self).setdefault("inputs", {}).setdefault(site, []).append(self._some(vectors).clone())

    def _some(self, vectors: Tensor) -> Tensor:
        if len(vectors) <= self.sample:
            return vectors
        return vectors[:: coprime_stride(len(vectors), self.sample)]

    def _called(self, step: Step, site: str, module: Module, x: Tensor, y: Tensor) -> Callable[[Tensor], None] | None:
        last = step.notes(self)["last"] = {"site": site}
        if not isinstance(module, Linear) or y.ndim != 2 or y.shape[1] < 2:
            return None
        last |= {"x": self._some(x).clone(), "y": self._some(y).clone(), "count": len(x)}
        return lambda gradient: last.update(gradient=self._some(gradient).clone())

    def read(self, step: Step) -> Iterator[Record]:
        """Yield the condition of each layer's input, then the Fisher values."""
        notes = step.notes(self)
        for site, calls in notes.get("inputs", {}).items():
            values = _spectrum(_host(torch.cat(calls)))
            for name, value in _condition(values).items():
                yield self.record(step, site, name, value)
        last = notes.get("last", {})
        if "gradient" in last and last["count"]:
            x, y, gradient = (_host(last[key]) for key in ("x", "y", "gradient"))
            if not (np.isfinite(x).all() and np.isfinite(y).all()):
                return
            p = np.exp(y - y.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            if any(_one_hot(p - factor * gradient) for factor in (last["count"], 1)):
                for index, value in enumerate(_fisher(x, p)):
                    yield self.record(step, last["site"], f"fisher_{index + 1}", value)

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of layers whose inputs lie along few directions."""
        if bad := beyond(readings, "condition_95", above=_ILL):
            yield bad.remark(
                "the inputs of {site} are badly conditioned: {value} to 1 within 95 % of their energy{since}",
                "the inputs of {where} are badly conditioned, worst of {site}: {value} to 1 within 95 % of their energy"
                "{since}",
                amount,
                Urgency.COSTLY,
                "layer",
            )
        if top := beyond(readings, "top_over_mean", above=_ONE_DIRECTION):
            yield top.remark(
                "one direction of the inputs of {site} carries {value} times the mean energy of all{since}",
                "one direction dominates the inputs of {where}, most of {site}: {value} times the mean energy{since}",
                amount,
                Urgency.NOTABLE,
                "layer",
            )


def _vectors(module: Module, x: Tensor) -> Tensor:
    """View the input as vectors ``(count, d)``."""
    if isinstance(module, _ConvNd):
        batched = x.ndim == len(module.kernel_size) + 2
        return x.movedim(1 if batched else 0, -1).reshape(-1, x.shape[1 if batched else 0])
    return x.reshape(-1, x.shape[-1]) if x.ndim else x.reshape(1, 1)


def _host(tensor: Tensor) -> Any:
    return tensor.cpu().double().numpy()


def _spectrum(vectors: np.ndarray) -> np.ndarray:
    """Eigenvalues of the second moment in falling order, all d of them; none below what rounding leaves of zero."""
    count, d = vectors.shape
    if not np.isfinite(vectors).all():
        return np.full(d, math.nan)
    product = vectors.T @ vectors if d <= count else vectors @ vectors.T
    found = np.linalg.eigvalsh(product / count)[::-1]
    found = np.where(found > max(count, d) * np.finfo(float).eps * found[0], found, 0.0)
    return np.concatenate([found, np.zeros(d - found.size)])


def _condition(values: np.ndarray) -> dict[str, float]:
    top, trace, d = float(values[0]), float(values.sum()), values.size
    if not top > 0:
        return dict.fromkeys(("top_over_mean", "outlier", "condition_95", "condition_100"), math.nan)
    reached = int(np.searchsorted(np.cumsum(values), 0.95 * trace))
    rest = (trace - top) / max(d - 1, 1)
    return {
        "top_over_mean": top * d / trace,
        "outlier": top / rest if rest > 0 else math.inf,
        "condition_95": top / float(values[min(reached, d - 1)]),
        "condition_100": top / float(values[-1]) if values[-1] > 0 else math.inf,
    }


def _one_hot(values: np.ndarray) -> bool:
    return bool(np.all(np.minimum(abs(values), abs(values - 1)) < 1e-3) and np.all(abs(values.sum(axis=1) - 1) < 1e-3))


def _fisher(x: np.ndarray, p: np.ndarray) -> list[float]:
    """Top eigenvalues of ``mean((diag(p) - p p^T) (x) x x^T)``, by Lanczos with products that never form it."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    count, classes = p.shape
    d = x.shape[1]

    def product(flat: np.ndarray) -> np.ndarray:
        scores = x @ flat.reshape(classes, d).T
        scores = p * (scores - (p * scores).sum(axis=1, keepdims=True))
        return (scores.T @ x / count).ravel()

    size = classes * d
    if size <= _TOP:
        return []
    try:
        # A start of its own: without one ARPACK draws from a stream.
        start = np.cos(np.arange(size, dtype=float))
        found = eigsh(LinearOperator((size, size), product, dtype=float), _TOP, v0=start, return_eigenvectors=False)
    except ArpackError:
        return []
    return sorted(map(float, found), reverse=True)
