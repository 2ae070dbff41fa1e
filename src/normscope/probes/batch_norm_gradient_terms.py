"""What batch norm takes out of the gradient that passes it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from normscope.modules.channels import Channels, channels, to_host
from normscope.modules.sites import batch_norms, chosen, uses_batch
from normscope.probes._probe import AbstractProbe
from normscope.probes._remarks import Readings, Remark, Urgency, amount, beyond, percent
from normscope.probes._step import Step
from normscope.records import Record

_TAKEN = 0.5  # share of the gradient's energy; a gradient that knows nothing of the batch loses one over its size
_TURNED = 0.7  # cosine: 45 degrees


class BatchNormGradientTerms(AbstractProbe):
    r"""Energy that the mean and the variance term of batch norm take out of the gradient.

    ## Measures
    Batch norm in training passes back :math:`g_x = \frac{\gamma}{\sigma}\left(g - \overline{g} - \hat x\,
    \overline{g \hat x}\right)`, with :math:`g` the gradient at its output, bars means over the batch and positions of a
    channel, :math:`m` of them, and :math:`\sigma^2 = \mathrm{Var}[x] + \epsilon`. Energies are squared lengths, summed
    over the channels of the layer. From the user's own pass, for each batch norm that used its batch's statistics:

    - ``mean_share``: share of the energy of the rescaled gradient :math:`\gamma g/\sigma` that the term
      :math:`\overline{g}` removes, and ``variance_share``: the share that :math:`\hat x\,\overline{g \hat x}` removes.
      The rest passes. A gradient that knows nothing of the two directions loses :math:`1/m` to each;
    - ``rescale_error``: :math:`\lVert \gamma g/\sigma - g_x\rVert / \lVert g_x\rVert`, how wrong the formula is that
      knows the factor only, and ``rescale_cosine``: the cosine of the two;
    - ``sigma``: mean of :math:`\sigma` over channels, and ``gain``: mean of :math:`|\gamma|/\sigma`.

    With :math:`q = \overline{g \hat x}` and :math:`v = \mathrm{Var}[x]/\sigma^2`, removed in a channel are
    :math:`m\overline g^2` and :math:`m q^2 (2 - v)` of :math:`\lVert g\rVert^2`, exactly for any :math:`\epsilon`. A
    layer called several times is pooled over its calls.

    ## Cost
    Two reads of each layer's input and three of its output gradient; the input's are shared with other probes.

    ## Reads wrongly when
    Several backward passes are made through one forward pass: only the first is read. Statistics are synchronised over
    replicas: the terms are then those of this replica's share alone. A gradient of zero has no shares: NaN.

    Args:
        sites: Qualified names of batch norms; all if None.
        every: Read at every so-many-th step; None takes the scope's schedule.
    """

    CODE = "batch_norm_gradient_terms"
    SHOWS = "variance_share"
    QUESTION = "gradient"
    BY_DEFAULT = True
    NOTHING = "no batch norm that normalizes by its batch ran in this model, or no gradient came back to it"
    STREAMING = True
    SOURCES = (
        "Ioffe and Szegedy 2015, section 3 (arXiv:1502.03167)",
        "Santurkar et al. 2018, facts C.1, C.2 (arXiv:1805.11604)",
    )

    def __init__(self, sites: Sequence[str] | None = None, *, every: int | None = None) -> None:
        super().__init__(every=every)
        self.sites = None if sites is None else tuple(sites)

    def watch(self, step: Step) -> None:
        """Reduce input and output gradient of each call."""
        for site, module in (
            step.modules(batch_norms) if self.sites is None else chosen(step.model, self.sites)
        ).items():
            step.on_call(self, module, partial(self._called, step, site, module))

    def _called(self, step: Step, site: str, module: Module, x: Tensor, _: Tensor) -> Callable[[Tensor], None] | None:
        if not uses_batch(module) or not x.numel():
            return None
        notes = step.notes(self)
        notes.setdefault(site, [])  # the order of first use
        moments = step.memo(x, "channels", channels)
        weight = getattr(module, "weight", None)
        kept = None if weight is None else weight.detach().clone()
        eps = float(getattr(module, "eps", 0.0))
        inputs = [moments]

        def read(gradient: Tensor) -> None:
            # The input is let go of at once: held until the whole backward pass ends, it would raise the peak of memory
            # and take the place that the next gradients are written to.
            if inputs:
                notes[site].append(self._of(inputs.pop(), gradient, kept, eps))

        del moments
        return read

    @staticmethod
    def _of(moments: Channels, gradient: Tensor, weight: Tensor | None, eps: float) -> dict[str, Any]:
        total, squares, product = moments.inner(gradient)
        scale = torch.ones_like(moments.mean) if weight is None else weight.to(moments.mean.dtype)
        stacked = torch.stack([total, squares, product, moments.variance, scale])
        return {"stacked": stacked, "count": moments.count, "eps": eps}

    def read(self, step: Step) -> Iterator[Record]:
        """Yield the shares, errors and scales of each layer, in the order of first use."""
        notes = {site: calls for site, calls in step.notes(self).items() if calls}
        if not notes:
            return
        every = [call for calls in notes.values() for call in calls]
        host = to_host([call["stacked"] for call in every])
        # All layers and calls lie side by side, so the number of operations does not grow with the layers.
        widths = [part.shape[1] for part in host]
        count = np.repeat([float(call["count"]) for call in every], widths)
        eps = np.repeat([call["eps"] for call in every], widths)
        total, squares, product, variance, weight = np.concatenate(host, axis=1)
        sigma = np.sqrt(variance + eps)
        with np.errstate(all="ignore"):
            factor = (weight / sigma) ** 2
            by_mean = factor * total**2 / count
            q2 = factor * (product / sigma) ** 2 / count
            share = variance / sigma**2
            rows = np.stack([factor * squares, by_mean, q2 * (2 - share), q2, q2 * share, sigma, abs(weight / sigma)])
        bounds = np.cumsum([0, *(sum(len(call["stacked"][0]) for call in calls) for calls in notes.values())])
        sums = np.add.reduceat(rows, bounds[:-1], axis=1)
        for site, width, column in zip(notes, np.diff(bounds), sums.T, strict=True):
            whole, mean, variance_, cross, energy, sigmas, gains = column.tolist()
            passed = max(whole - mean - variance_, 0.0)
            values = {
                "mean_share": _ratio(mean, whole),
                "variance_share": _ratio(variance_, whole),
                "rescale_error": _ratio(mean + energy, passed) ** 0.5,
                "rescale_cosine": _ratio(whole - mean - cross, (whole * passed) ** 0.5),
                "sigma": sigmas / width,
                "gain": gains / width,
            }
            for name, value in values.items():
                yield self.record(step, site, name, value)

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of batch norms whose mean or variance term takes out most of the gradient."""
        for name, term in (("variance_share", "variance"), ("mean_share", "mean")):
            if taken := beyond(readings, name, above=_TAKEN):
                yield taken.remark(
                    f"the {term} term of {{site}} takes {{value}} of the gradient's energy out{{since}}",
                    f"the {term} term takes out more than {percent(_TAKEN)} of the gradient's energy in {{where}}, "
                    "most in {site}: {value}{since}",
                    percent,
                    Urgency.NOTABLE,
                    "batch norm",
                )
        if wrong := beyond(readings, "rescale_cosine", below=_TURNED):
            yield wrong.remark(
                "{site} turns the gradient: the cosine with the merely rescaled gradient is {value}",
                "in {where} the gradient is turned and not only rescaled, most in {site}: cosine {value}",
                amount,
                Urgency.NOTABLE,
                "batch norm",
            )


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")
