"""The norms of torch's that a module of another library may be, on its own parameters and buffers."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from normscope.modules.sites import running
from normscope.surgery._modules import ChannelsFirst, RMSNorm
from normscope.surgery._trying import GAINS, SHIFTS, held
from normscope.surgery.freeze import freeze

_EPS = ("eps", "epsilon", "variance_epsilon", "variance_eps", "norm_eps")
_USUAL_EPS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3)
_COUNT = "num_batches_tracked"


def candidates(module: Any, x: Tensor) -> Iterator[nn.Module]:
    """Yield the norms that a module may be.

    Args:
        module: The module.
        x: An input that it takes.
    """
    gain, shift = held(module, GAINS), held(module, SHIFTS)
    for vector in (gain, shift):
        if vector is not None and vector.numel() != max(vector.shape, default=1):
            return
    own = next((getattr(module, name) for name in _EPS if isinstance(getattr(module, name, None), float)), None)
    for eps in _USUAL_EPS if own is None else (own,):
        yield from _with_gain(module, x, _vector(gain), _vector(shift), eps)
        if gain is not None:  # Gemma's gain is kept as its distance from 1
            yield from _with_gain(module, x, nn.Parameter(gain.detach().flatten() + 1), _vector(shift), eps)


def _vector(values: Any) -> Any:
    if values is None or (isinstance(values, nn.Parameter) and values.ndim == 1):
        return values
    learns = isinstance(values, nn.Parameter) and values.requires_grad
    return nn.Parameter(values.detach().flatten(), requires_grad=learns)


def _with_gain(module: Any, x: Tensor, gain: Any, shift: Any, eps: float) -> Iterator[nn.Module]:
    known = next((t for t in (gain, shift, *module.buffers()) if t is not None), x)
    place: dict[str, Any] = {"dtype": known.dtype if known.is_floating_point() else x.dtype, "device": x.device}
    rank, learns = x.ndim, gain is not None or shift is not None
    if running(module) is not None and 2 <= rank <= 5:
        yield from _batch_norms(module, rank, gain, shift, {"eps": eps, "affine": learns, **place})
        return
    if isinstance(getattr(module, "num_groups", None), int) and rank >= 2:
        yield _holding(nn.GroupNorm(module.num_groups, x.shape[1], eps=eps, affine=learns, **place), gain, shift)
        return
    for axis in (-1, 1) if rank > 2 else (-1,):
        size = x.shape[axis]
        if any(v is not None and v.numel() != size for v in (gain, shift)):
            continue
        turn = ChannelsFirst if axis == 1 else (lambda norm: norm)
        yield turn(_holding(nn.LayerNorm(size, eps=eps, elementwise_affine=learns, **place), gain, shift))
        if shift is None:
            yield turn(_holding(nn.RMSNorm(size, eps=eps, elementwise_affine=learns, **place), gain, None))
        else:
            yield turn(RMSNorm(gain, shift, -1, eps=eps))
        if axis == 1:
            yield _holding(nn.GroupNorm(1, size, eps=eps, affine=learns, **place), gain, shift)
            yield _holding(nn.GroupNorm(size, size, eps=eps, affine=learns, **place), gain, shift)


def _batch_norms(module: Any, rank: int, gain: Any, shift: Any, options: dict[str, Any]) -> Iterator[nn.Module]:
    """Yield batch norms on a module's own statistics, with its momentum by either convention, and a frozen one."""
    names: Any = running(module)
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 2]
    said = getattr(module, "momentum", 0.1)
    momentum = said if isinstance(said, float | None) else 0.1
    for taken in dict.fromkeys((momentum, momentum if momentum is None else 1 - momentum, "frozen")):
        new = kind(module._buffers[names[0]].numel(), momentum=momentum if isinstance(taken, str) else taken, **options)
        for name, theirs in zip(("running_mean", "running_var", _COUNT), (*names, _COUNT), strict=True):
            if module._buffers.get(theirs) is not None:
                new._buffers[name] = module._buffers[theirs]
        _holding(new, gain, shift)
        if taken == "frozen":
            freeze(new)
        yield new


def _holding(new: nn.Module, gain: Any, shift: Any) -> nn.Module:
    for name, kept in (("weight", gain), ("bias", shift)):
        if name in new._parameters:
            new._parameters[name] = kept
    return new
