"""What a norm makes of the values that it is given, told by its answers: of whatever class it is, no formula is read.

A copy of the norm, with a gain of 1, is given the values of a training batch times a factor. A norm's answer does not
follow the factor once the variance is far above eps; how far it still does says what share of the variance eps leaves.
And a small change of the values must change the answer: if it does not, the norm puts out signs, or a constant.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from normscope.evidence.case import Case
from normscope.evidence.passes import look
from normscope.modules.hooks import silence
from normscope.surgery import norm_sites

_GAINS = ("weight", "gamma", "gain", "scale", "g", "a_2", "alpha")
_FACTOR, _CHANGE = 1e4, 1e-3
_NONE, _FOLLOWS = 1e-4, 1.5  # rounding of a value less itself, times the root of 1 / eps, is below
_VALUES, _SAMPLES, _CALLS = 1 << 17, 8, 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes through a norm.

    Attributes:
        share: The median over values of var / (var + eps), of whichever values the norm takes the variance; 0 where the
            norm puts out the same whatever comes in.
        response: Relative change of the output over that of the input, once eps does not matter: about 1, 0.6 for three
            values that share a mean and a variance, and 0 for two.
        gain: Median size of the gains; None without.
        minority: Share of gains that have the rarer sign.
        output: Median size of the output without its shift, with the gains as they are, once eps does not matter.
    """

    share: float
    response: float
    gain: float | None = None
    minority: float = 0.0
    output: float = 1.0


def answers(case: Case) -> dict[str, Answer]:
    """Return what comes through each norm that normalizes by what it is given, in the mode in which it trains.

    Left out are norms that cannot be called with their input alone, and those whose input is the same in every sample.

    Raises:
        UsageError: The loader or the loss raises.
    """
    modules = {site.path: site.module for site in norm_sites(case.model) if not _waits(site.module)}
    given: dict[str, list[Tensor]] = {}

    def see(path: str, x: Tensor, _args: Any) -> None:
        kept = given.setdefault(path, [])
        if len(kept) < _CALLS and x.ndim > 1 and x.numel():
            kept.append(x[: max(_SAMPLES, _VALUES * len(x) // x.numel())].clone())

    look(case, modules, 1, before=see)
    found = {}
    for path, inputs in given.items():
        several = [answer for x in inputs if (answer := _answer(modules[path], x)) is not None]
        if several:
            found[path] = max(several, key=lambda answer: (min(answer.response, 1.0), answer.share))
    return found


def _waits(module: Module) -> bool:
    """Whether a call of the module would wait for other processes."""
    synchronised = isinstance(module, nn.SyncBatchNorm) or getattr(module, "statistics", "") == "sync"
    return synchronised and torch.distributed.is_available() and torch.distributed.is_initialized()


@torch.no_grad()
def _answer(module: Module, x: Tensor) -> Answer | None:
    x = x.double()
    if len(x) < 2 or not bool(x.isfinite().all()) or torch.equal(x, x[:1].expand_as(x)):
        return None
    try:
        twin = copy.deepcopy(module).double()
        for inner in twin.modules():
            silence(inner)
            if inner is not twin:
                inner.training = False
        if _reads_buffers(twin, x):
            return None
        gain = _gain(twin)
        now = None if gain is None else gain.detach().clone().flatten()
        far = None if gain is None else _without_shift(twin, _large(x))
        if gain is not None:
            gain.fill_(1.0)
        return _of(twin, x, now, far)
    except Exception:
        return None  # it takes more than its input, or cannot be copied: nothing is known of it


def _of(twin: Module, x: Tensor, gain: Tensor | None, far: Tensor | None) -> Answer | None:
    here, top = _without_shift(twin, x), _without_shift(twin, _large(x))
    topmost = _without_shift(twin, _large(x) * _FACTOR)
    if not bool(top.isfinite().all() and topmost.isfinite().all()) or here.shape != x.shape:
        return None
    moved = top.abs() > _NONE
    if not bool(moved.any()):
        return Answer(0.0, 0.0) if not bool((topmost.abs() > _FACTOR * _NONE).any()) else None
    sizes = float(top[moved].abs().mean()), float(topmost[moved].abs().mean())
    if not sizes[0] / _FOLLOWS < sizes[1] < _FOLLOWS * sizes[0]:
        return None  # it follows the scale of its input: it normalizes by statistics of its own, or not at all
    stream = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=stream, dtype=torch.float64).to(x.device)
    change = _without_shift(twin, _large(x) + _CHANGE * _FACTOR * noise) - top
    share = float((here[moved] / top[moved]).square().median())
    # Two values that are nearly the same may change places: few do, and what they do is no response.
    change = change[moved].abs().clamp(max=2 * _CHANGE * sizes[0])
    response = float(change.mean()) / sizes[0] / _CHANGE
    if gain is None or far is None or gain.numel() < 2:
        return Answer(share, response)
    negative = float((gain < 0).double().mean())
    minority = min(negative, float((gain > 0).double().mean()))
    return Answer(share, response, float(gain.abs().median()), minority, float(far.abs().median()))


def _gain(module: Module) -> Tensor | None:
    held = {**module._buffers, **module._parameters}
    return next((tensor for name in _GAINS if (tensor := held.get(name)) is not None), None)


def _reads_buffers(twin: Module, x: Tensor) -> bool:
    """Whether the output depends on running statistics, so that it is no answer to what the norm is given."""
    gain = _gain(twin)
    floats = [each for each in twin.buffers() if each.is_floating_point() and each is not gain]
    if not floats:
        return False
    kept = [each.clone() for each in twin.buffers()]
    here = twin(x.clone())
    for buffer, value in zip(twin.buffers(), kept, strict=True):
        buffer.copy_(value)
    for each in floats:
        each.mul_(1.5).add_(0.1)
    moved = twin(x.clone())
    for buffer, value in zip(twin.buffers(), kept, strict=True):
        buffer.copy_(value)
    return float((moved - here).abs().max()) > _CHANGE * float(here.abs().mean())


def _without_shift(module: Module, x: Tensor) -> Tensor:
    return module(x.clone()) - module(torch.zeros_like(x))


def _large(x: Tensor) -> Tensor:
    return x * (_FACTOR / x.square().mean().sqrt())
