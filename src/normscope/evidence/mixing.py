"""Which modules of a model mix the samples of a batch: each is given other neighbours by itself."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from normscope.evidence.calls import Call, copied
from normscope.modules.batches import tensors
from normscope.modules.sites import uses_batch
from normscope.modules.state import traceless
from normscope.modules.tree import walk

_CHANGE = 1e-4  # of the root mean square of an output, of a call repeated with the same shapes
_TRAINING = 5  # place of the argument of batch_norm that says whether the batch's statistics are used

Axis = tuple[int, int] | None  # where the samples of a tensor lie, and how many places each of them has there
Note = Callable[[str, Module, Any, Any], None]


@dataclass(frozen=True, slots=True)
class Mixing:
    """A module whose output for a sample depends on the other samples that the module is given.

    Attributes:
        path: Qualified name; empty for code of the model itself.
        module: The module.
        normalizes: Whether it is known to normalize by the batch.
        how: How that is known, or how else it mixes samples, in words; empty if that is not known.
    """

    path: str
    module: Module
    normalizes: bool
    how: str


def mixing_modules(call: Call, given: Any, count: int) -> tuple[Mixing, ...]:
    """Return the innermost modules that mix samples, in the order in which they end.

    Every module that a call reaches is called once more by itself, with every second of its samples replaced by the
    sample before. The axis of samples of an inner tensor is that which is shorter where the batch is shorter; where it
    holds samples and positions in one, both orders are tried.

    Args:
        call: The call of the model in eval mode; its state is left as it was.
        given: Its positional and keyword arguments.
        count: How many samples they hold.
    """
    half = pytree.tree_map_only(Tensor, lambda t: t[::2] if t.ndim and len(t) == count else t, given)
    shorter: dict[str, tuple[Any, Any]] = {}
    found: dict[str, Mixing] = {}

    def note(path: str, _module: Module, args: Any, output: Any) -> None:
        shorter.setdefault(path, (_shapes(args), _shapes(output)))

    def look(path: str, module: Module, args: Any, output: Any) -> None:
        if path in seen or (shorter and path not in shorter):
            return
        seen.add(path)
        axes = [
            _axes(part, then, count) for part, then in zip((args, output), shorter.get(path, ((), ())), strict=True)
        ]
        if any(axes[0]) and any(axes[1]):
            mixed = _mixed(module, args, axes[0], axes[1])
            if mixed is not None:
                found[path] = _named(path, module, mixed)

    seen: set[str] = set()
    try:
        with _heard(call, note):
            _run(call, half)
    except Exception:  # a size that the model does not take: axes are then told by their length
        shorter.clear()
    with _heard(call, look) as by_function:
        _run(call, given)
    for path in by_function & found.keys():
        if not isinstance(found[path].module, _BatchNorm):
            found[path] = Mixing(path, found[path].module, True, "calls batch_norm with training=True")
    return tuple(one for one in found.values() if not any(_is_inside(path, one.path) for path in found))


def _named(path: str, module: Module, constant: bool) -> Mixing:
    if isinstance(module, _BatchNorm) and uses_batch(module):
        return Mixing(path, module, True, "keeps no running statistics")
    if constant:
        return Mixing(path, module, True, "gives a batch the same mean whatever is in it")
    time_first = getattr(module, "batch_first", None) is False
    return Mixing(path, module, False, "takes the first axis for time, batch_first=False" if time_first else "")


def _is_inside(path: str, other: str) -> bool:
    return path != other and (not other or path.startswith(f"{other}."))


def _run(call: Call, given: Any) -> None:
    args, kwargs = copied(given)
    with torch.no_grad(), traceless(call.module):
        call.module(*args, **kwargs)


class _BatchNormCalls(TorchFunctionMode):
    """Notes where ``batch_norm`` is called so that it uses the batch's statistics."""

    def __init__(self, under_way: list[str], found: set[str]) -> None:
        super().__init__()
        self._under_way, self._found = under_way, found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the call and make it."""
        kwargs = kwargs or {}
        if func in (functional.batch_norm, torch.batch_norm) and self._under_way:
            training = kwargs.get("training", args[_TRAINING] if len(args) > _TRAINING else False)
            if training:
                self._found.add(self._under_way[-1])
        return func(*args, **kwargs)


@contextmanager
def _heard(call: Call, note: Note) -> Iterator[set[str]]:
    """Call ``note`` after each call of a module, not in calls that it makes; collect where ``batch_norm`` is called."""
    under_way: list[str] = []
    noting: list[str] = []
    by_function: set[str] = set()
    with ExitStack() as hooks:
        for name, module in walk(call.module):
            path = f"{call.path}.{name}".strip(".")

            def before(_module: Module, _args: Any, path: str = path) -> None:
                under_way.append(path)

            def after(module: Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
                if not noting:
                    noting.append(path)
                    note(path, module, (args, kwargs), output)
                    noting.clear()
                under_way.pop()

            hooks.callback(module.register_forward_pre_hook(before).remove)
            hooks.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        hooks.enter_context(_BatchNormCalls(under_way, by_function))
        yield by_function


def _shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in tensors(value)]


def _axes(value: Any, shorter: Any, count: int) -> list[Axis]:
    """Return where the samples of each tensor lie; None for a tensor that is none of samples."""
    shapes, short = _shapes(value), (count + 1) // 2
    if not shorter:
        return [(0, 1) if shape and shape[0] == count else None for shape in shapes]
    found: list[Axis] = []
    for one, other in zip(shapes, shorter, strict=False):
        differ = [i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
        axis = differ[0] if len(differ) == 1 and len(one) == len(other) else None
        whole = axis is not None and one[axis] * short == other[axis] * count and one[axis] % count == 0
        found.append((axis, one[axis] // count) if axis is not None and whole else None)
    return found


def _by_sample(leaf: Tensor, axis: tuple[int, int], inner: bool) -> Tensor:
    """Return a view of a tensor by samples; they lie inside the positions or outside of them."""
    leaf = leaf.movedim(axis[0], 0)
    places = axis[1]
    if places == 1:
        return leaf
    if inner:
        return leaf.unflatten(0, (places, -1)).transpose(0, 1)
    return leaf.unflatten(0, (-1, places))


def _mixed(module: Module, given: Any, axes: list[Axis], made_axes: list[Axis]) -> bool | None:
    """Return whether the mean of a module's output does not depend on its samples; None if it mixes no samples."""
    constant = False
    for inner in (False, True) if any(axis and axis[1] > 1 for axis in axes) else (False,):
        other = copied(given)
        for leaf, axis in zip(tensors(other), axes, strict=True):
            if axis is not None:
                samples = _by_sample(leaf, axis, inner)
                odd = samples[1::2]
                odd.copy_(samples[::2][: len(odd)].clone())
        try:
            then, now = (_repeated(module, one, made_axes, inner) for one in (copied(given), other))
        except Exception:  # it cannot be called by itself
            return None
        if all(_same(a[::2], b[::2]) for a, b in zip(then, now, strict=True)):
            return None
        constant = constant or all(_same_mean(a, b) for a, b in zip(then, now, strict=True))
    return constant


def _repeated(module: Module, given: Any, axes: list[Axis], inner: bool) -> list[Tensor]:
    """Return the outputs of samples, in their order, of a call that leaves nothing behind."""
    with traceless(module):
        pairs = zip(tensors(module.forward(*given[0], **given[1])), axes, strict=True)
    return [_by_sample(leaf, axis, inner).double() for leaf, axis in pairs if axis and leaf.is_floating_point()]


def _same(one: Tensor, other: Tensor) -> bool:
    difference = float((one - other).abs().max()) if one.numel() else 0.0
    return difference <= _CHANGE * float(one.square().mean().sqrt())


def _same_mean(one: Tensor, other: Tensor) -> bool:
    """Whether each channel has the same mean over two batches, of which each has more than one value a channel."""
    means = [t.movedim(1, -1).flatten(0, -2).mean(0) if t.ndim > 1 else t.mean(0) for t in (one, other)]
    return float((means[0] - means[1]).abs().max()) <= _CHANGE * float(one.square().mean().sqrt())
