"""What a module of another library computes, found by calling copies of it."""

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from normscope.modules.rng import torch_streams_kept
from normscope.modules.sites import running
from normscope.surgery._modules import NormThen

GAINS = ("weight", "gamma", "gain", "scale", "g", "a_2", "alpha")
SHIFTS = ("bias", "beta", "shift", "b", "b_2")
# The largest rank first that a module may take: of a batch (4, C) alone it does not show which axis it takes for C.
_SHAPES = ((4, "C", 5, 6), (4, 5, "C"), (4, "C", 5), (4, 5, 6, "C"), (3, "C", 4, 5, 6), (4, "C"))
# Parts of the names that the code of a norm reads: whatever normalizes takes a moment, or calls what does.
_MOMENTS = ("norm", "mean", "var", "std", "rsqrt", "sqrt", "square", "pow", "sum", "abn")


def held(module: Any, names: tuple[str, ...]) -> Any:
    """Return the first of a module's own parameters and buffers that has one of some names; None if there is none."""
    known = {**module._buffers, **module._parameters}
    return next((known[name] for name in names if known.get(name) is not None), None)


@dataclass(frozen=True)
class Statistics:
    """The running statistics of a norm of any class.

    Attributes:
        mean: The running mean.
        var: The running variance.
        count: How many batches were taken in, where the norm counts.
        moves: Whether a call in training changes them, as far as a call of a copy shows.
    """

    mean: Tensor
    var: Tensor
    count: Tensor | None
    moves: bool


def statistics_of(module: nn.Module) -> Statistics | None:
    """Return the running statistics of a norm of any class, whatever it calls them; None if it keeps none."""
    names = running(module)
    if names is None:
        return None
    mean, var = (module.get_buffer(name) for name in names)
    count = module._buffers.get("num_batches_tracked")
    return Statistics(mean, var, count, moves=updates(module, training=True) is not False)


def inputs(module: Any, given: Tensor | None = None) -> Iterator[Tensor]:
    """Yield what a module may be called with: of the shape of ``given``, or of usual shapes."""
    stream = torch.Generator().manual_seed(0)
    if given is not None and not given.is_nested and given.ndim and given.is_floating_point():
        # Of its shape, not its values: those may be all zero, where every norm gives its shift.
        size: Any = (max(4, len(given)), *given.shape[1:])
        yield torch.randn(size, generator=stream).mul(1.3).add(0.4).to(given)
        return
    known = next((t for t in (held(module, GAINS), *module.buffers()) if t is not None and t.numel() > 1), None)
    place = {"dtype": known.dtype, "device": known.device} if known is not None and known.is_floating_point() else {}
    for shape in _SHAPES:
        size = tuple((channels(module) or 7) if n == "C" else n for n in shape)
        yield torch.randn(size, generator=stream).mul(1.3).add(0.4).to(**place)


def channels(module: Any) -> int | None:
    """Return how many channels a norm says it has."""
    known = next((t for t in (held(module, GAINS), *module.buffers()) if t is not None and t.numel() > 1), None)
    said = getattr(module, "num_features", None) or getattr(module, "num_channels", None)
    return said or (known.numel() if known is not None else None)


@torch.no_grad()
def called(module: nn.Module, x: Tensor, *, training: bool) -> tuple[nn.Module, Tensor | None]:
    """Call a copy of a module, its children not training, so that nothing is dropped.

    Args:
        module: The module.
        x: Its input.
        training: The mode of the copy, and of the norm in a ``NormThen``.

    Returns:
        The copy, and its output; None where it raises, or gives something else than a finite tensor.
    """
    try:
        twin = copy.deepcopy(module)
    except Exception:  # it holds a tensor with a history, say
        return module, None
    for inner in twin.modules():
        for name, value in vars(inner).items():
            if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                vars(inner)[name] = type(value)()
        inner.training = False
    for inner in (twin, *twin.norm.modules()) if isinstance(twin, NormThen) else (twin,):
        inner.training = training and "train" not in vars(inner)
    try:
        with torch_streams_kept():
            found = twin(x.clone())
    except Exception:
        return twin, None
    return twin, found if isinstance(found, Tensor) and found.isfinite().all() else None


def output(module: nn.Module, x: Tensor, *, training: bool) -> Tensor | None:
    """Return what a copy of a module puts out; see ``called``."""
    return called(module, x, training=training)[1]


def updates(module: nn.Module, *, training: bool) -> bool | None:
    """Whether a call of a copy changes the running mean of a norm that has one; None where no usual input is taken."""
    names = running(module)
    for x in inputs(module):
        twin, found = called(module, x, training=training)
        if found is not None and names is not None:
            return not torch.equal(twin.get_buffer(names[0]), module.get_buffer(names[0]))
    return None


@torch.no_grad()
def with_other_values(module: Any) -> Any:
    """Return a copy whose parameters and buffers have other values, without infinities; variances stay positive."""
    stream = torch.Generator().manual_seed(1)
    try:
        twin = copy.deepcopy(module)
    except Exception:  # then it is not called either
        return module
    for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
        if tensor.is_floating_point():
            values = tensor.double().nan_to_num(1.0, 1.0, 1.0).clamp(-1e3, 1e3).cpu()
            drawn = torch.rand(values.shape, generator=stream, dtype=values.dtype)
            if "var" in name:
                values = values.abs() + drawn + 0.1
            else:
                values = values + drawn + 0.1 * values.abs().amax() if values.numel() else values
            tensor.copy_(values)
    return twin


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs are equal but for the rounding of their type."""
    tolerance = 2e-2 if b.dtype in (torch.float16, torch.bfloat16) else 1e-4
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def ignores_scale(module: nn.Module, x: Tensor) -> bool:
    """Whether the output stays about as large when the input becomes eight times as large."""
    small, large = output(module, x, training=True), output(module, x * 8, training=True)
    if small is None or large is None or small.shape != large.shape:
        return False
    return bool(0 < large.double().square().mean() < 4 * small.double().square().mean())


def normalizes(module: nn.Module) -> bool:
    """Whether a module without a telling name normalizes: its output is that of its input at any scale.

    And it is no function of each value alone, as a sign is. Only modules whose code takes a moment are called.
    """
    if not _takes_moments(type(module)):
        return False
    for x in inputs(module, None):
        small = output(module, x, training=True)
        if small is None or small.shape != x.shape or not bool(small.std() > 0):
            continue
        large = output(module, x * 8, training=True)
        if large is None or not torch.allclose(large, small, rtol=0.02, atol=0.02 * float(small.abs().max())):
            return False
        other = x.clone()
        other.view(-1)[0] += 3
        moved = output(module, other, training=True)
        return moved is not None and bool((moved != small).flatten()[1:].any())
    return False


def _takes_moments(kind: type) -> bool:
    """Whether the code of a class, outside of torch, reads a name that tells of a moment."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "normscope", "builtins"):
            continue
        for value in vars(base).values():
            code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
            if isinstance(code, CodeType) and any(part in name for name in code.co_names for part in _MOMENTS):
                return True
    return False
