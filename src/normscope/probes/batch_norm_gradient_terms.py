"""What batch norm takes out of the gradient that passes it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from normscope.modules.autocast import without_autocast
from normscope.modules.channels import to_host
from normscope.modules.contents import Content, Copy, by_channel, deviations_of, is_small, side_by_side
from normscope.modules.normalized import sums_gradients
from normscope.modules.sites import batch_norms, chosen, uses_batch
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes.remarks import Readings, Remark, Urgency, amount, beyond, percent
from normscope.records import Record

_TAKEN = 0.5  # share of the gradient's energy; a gradient that knows nothing of the batch loses one over its size
_TURNED = 0.7  # cosine: 45 degrees


@dataclass(slots=True)
class _Call:
    """A call of a norm: moments of its input, gain, and of its output gradient a copy, or the sums by channel.

    ``normalized``: the last of these is with the normalized input, not with the input's deviations.
    """

    content: Content
    weight: Tensor | None
    eps: float
    gradient: Copy | None = None
    sums: Tensor | None = None
    normalized: bool = False


class BatchNormGradientTerms(AbstractProbe):
    r"""Energy that the mean and the variance term of batch norm take out of the gradient.

    ## Measures
    Batch norm in training passes back $g_x = \frac{\gamma}{\sigma}\left(g - \overline{g} - \hat x\,
    \overline{g \hat x}\right)$, with $g$ the gradient at its output, bars means over the batch and positions of a
    channel, $m$ of them, and $\sigma^2 = \mathrm{Var}[x] + \epsilon$. Energies are squared lengths, summed
    over the channels of the layer. From the user's own pass, for each batch norm that used its batch's statistics:

    - ``mean_share``: share of the energy of the rescaled gradient $\gamma g/\sigma$ that the term
      $\overline{g}$ removes, and ``variance_share``: the share that $\hat x\,\overline{g \hat x}$ removes.
      The rest passes. A gradient that knows nothing of the two directions loses $1/m$ to each;
    - ``rescale_error``: $\lVert \gamma g/\sigma - g_x\rVert / \lVert g_x\rVert$, how wrong the formula is that
      knows the factor only, and ``rescale_cosine``: the cosine of the two;
    - ``sigma``: mean of $\sigma$ over channels, and ``gain``: mean of $|\gamma|/\sigma$.

    With $q = \overline{g \hat x}$ and $v = \mathrm{Var}[x]/\sigma^2$, removed in a channel are
    $m\overline g^2$ and $m q^2 (2 - v)$ of $\lVert g\rVert^2$, exactly for any $\epsilon$. A
    layer called several times is pooled over its calls.

    ## Cost
    Two reads of each layer's input, shared with other probes, and one of its output gradient where gain and shift are
    trained by torch's own batch norm, whose backward pass makes the other two sums; else three, and one of the input.

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
        layers = step.modules(batch_norms) if self.sites is None else chosen(step.model, self.sites)
        for site, module in layers.items():
            summed: list[Module] = []
            step.on_module(self, module, partial(self._ran, step, site, summed))
            step.on_call(self, module, partial(self._called, step, site, module, summed))

    def _ran(self, step: Step, site: str, summed: list[Module], module: Any, inputs: Any, output: Any) -> None:
        """Read the backward pass of a large batch from torch's own operation, which makes the sums that are wanted."""
        if not uses_batch(module) or not sums_gradients(module, output) or is_small(inputs[0]):
            return
        summed.append(module)
        with without_autocast():
            content = step.content(inputs[0].detach())
        calls: list[_Call] = step.notes(self).setdefault(site, [])
        weight = [module.weight.detach().clone()]

        def read(made: Sequence[Tensor | None], given: Sequence[Tensor | None]) -> None:
            g, (_, by_gain, by_shift) = given[0], made
            if not weight or g is None or by_gain is None or by_shift is None:
                return
            # The gradients of shift and gain are the sums of g, and of g times the normalized input.
            squares = torch.linalg.vector_norm(g.flatten(2), dim=2).double().square().sum(0)
            sums = torch.stack([by_shift.double(), squares / step.scale, by_gain.double()]) / step.scale
            calls.append(_Call(content, weight.pop(), module.eps, sums=sums, normalized=True))

        step.on_backward_of(self, output, read)

    def _called(
        self, step: Step, site: str, module: Module, summed: list[Module], x: Tensor, _: Tensor
    ) -> Callable[[Tensor], None] | None:
        if not uses_batch(module) or not x.numel() or summed:
            summed.clear()
            return None
        notes = step.notes(self)
        calls: list[_Call] = notes.setdefault(site, [])  # the order of first use
        content = step.content(x)
        inputs = [None if content.copy is not None else step.channels(x)]
        weight = getattr(module, "weight", None)
        kept = None if weight is None else weight.detach().clone()
        eps = float(getattr(module, "eps", 0.0))

        def read(gradient: Tensor) -> None:
            if not inputs:
                return
            # A large input is let go of at once: held until the whole backward pass ends, it would raise the peak of
            # memory and take the place that the next gradients are written to.
            moments = inputs.pop()
            if moments is None:
                calls.append(_Call(content, kept, eps, gradient=step.copied(gradient)))
            else:
                calls.append(_Call(content, kept, eps, sums=torch.stack(moments.inner(gradient))))

        return read

    def read(self, step: Step) -> Iterator[Record]:
        """Yield the shares, errors and scales of each layer, in the order of first use."""
        return self.records(step, self._values(step))

    def _values(self, step: Step) -> Iterator[tuple[str, str, float]]:
        notes = {site: calls for site, calls in step.notes(self).items() if calls}
        if not notes:
            return
        step.settle()
        energies = _energies([call for calls in notes.values() for call in calls])
        for site, calls in notes.items():
            found = [energies[id(call)] for call in calls]
            width = sum(call.content.channels for call in calls)
            whole, mean, variance_, cross, energy, sigmas, gains = (
                found[0] if len(found) == 1 else map(math.fsum, zip(*found, strict=True))
            )
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
                yield site, name, value

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


def _energies(calls: Sequence[_Call]) -> dict[int, list[float]]:
    """Return seven sums over the channels of each call, by ``id``: five energies, sigma, and gain over sigma."""
    large = [call for call in calls if call.sums is not None]
    alike: dict[tuple[int, int], list[_Call]] = {}
    for call in calls:
        if call.sums is None:
            alike.setdefault((call.content.samples, call.content.positions), []).append(call)
    # All layers and calls lie side by side, so the number of operations does not grow with the layers.
    ordered = [*large, *(call for group in alike.values() for call in group)]
    widths = [call.content.channels for call in ordered]
    sums = [*to_host([sums for call in large if (sums := call.sums) is not None]), *map(_sums, alike.values())]
    total, squares, product = sums[0] if len(sums) == 1 else np.concatenate(sums, axis=1)
    variance = np.concatenate([call.content.variance for call in ordered])
    gains = to_host(
        [torch.ones(width) if call.weight is None else call.weight for call, width in zip(ordered, widths, strict=True)]
    )
    weight = np.concatenate(gains)
    (count, eps, normalized), starts = _by_channel(
        tuple((call.content.channels, call.content.count, float(call.eps), call.normalized) for call in ordered)
    )
    with np.errstate(all="ignore"):
        sigma = np.sqrt(variance + eps)
        # Divided by sigma once, or not, where it is with the normalized input already.
        product = np.where(normalized, product, product / sigma)
        gain = weight / sigma
        factor = gain * gain
        shared, share = factor / count, variance / (sigma * sigma)
        q2 = shared * product * product
        rows = np.array([factor * squares, shared * total * total, q2 * (2 - share), q2, q2 * share, sigma, abs(gain)])
    by_call = np.add.reduceat(rows, starts, axis=1).T.tolist()
    return {id(call): row for call, row in zip(ordered, by_call, strict=True)}


@lru_cache(maxsize=16)  # the calls of a step are most often those of the step before
def _by_channel(calls: tuple[tuple[int, int, float, bool], ...]) -> tuple[np.ndarray, list[int]]:
    """Return what is given of each call behind its number of channels, by channel, and the first channel of each."""
    widths = [width for width, *_ in calls]
    return np.repeat([numbers for _, *numbers in calls], widths, axis=0).T, [0, *accumulate(widths[:-1])]


def _sums(calls: Sequence[_Call]) -> np.ndarray:
    """Return the sums over each channel of the gradient, of its square, and of it times the input's deviations."""
    positions = calls[0].content.positions
    g = side_by_side(by_channel(copy.array, positions) for call in calls if (copy := call.gradient) is not None)
    inputs = deviations_of([call.content for call in calls])
    with np.errstate(all="ignore"):
        terms = [g, g * g, g * inputs]
        if positions > 1:
            terms = [np.add.reduce(term, axis=2) for term in terms]
        return np.array([np.add.reduce(term, axis=0) for term in terms])


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")
