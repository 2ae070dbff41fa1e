"""What a probe must leave as it was, and how it is put back bit for bit."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from normscope.modules.rng import RngState
from normscope.modules.tree import walk

_TENSORS = ("_parameters", "_buffers")
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits (equal NaNs are the same, 0.0 and -0.0 are not)."""
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.layout != b.layout:
        return False
    if a.layout != torch.strided:
        a, b = a.coalesce(), b.coalesce()
        return same_bits(a.indices(), b.indices()) and same_bits(a.values(), b.values())
    whole = _WORDS.get(a.element_size())
    if whole is None:  # complex128: two words an element
        a, b, whole = torch.view_as_real(a), torch.view_as_real(b), torch.int64
    return torch.equal(a.detach().view(whole), b.detach().view(whole))


class _Kept:
    """A tensor, and what hangs on it; its value and its gradient's lie with those of others in a ``_Values``."""

    __slots__ = ("grad", "requires_grad", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.requires_grad = tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None

    def differences(self, name: str) -> Iterator[str]:
        if self.tensor.requires_grad is not self.requires_grad:
            yield f"requires_grad of {name}"
        if self.tensor.is_leaf and self.tensor.grad is not self.grad:
            yield f"identity of the gradient of {name}"

    def restore(self) -> None:
        if self.tensor.requires_grad is not self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)
        if self.tensor.is_leaf and self.tensor.grad is not self.grad:
            self.tensor.grad = self.grad


class _Values:
    """Values of many tensors, kept and compared in one piece a kind: calls, not bytes, are what small ones cost."""

    def __init__(self, named: Sequence[tuple[str, Tensor]]) -> None:
        kinds: dict[Any, list[tuple[str, Tensor]]] = {}
        for name, tensor in named:
            plain = tensor.layout == torch.strided and type(tensor) in (Tensor, Parameter)
            # What lies in memory in any other way than row by row is kept by itself: gathering would reorder it.
            together = plain and tensor.element_size() in _WORDS and tensor.is_contiguous()
            key = (tensor.dtype, tensor.device) if together else id(tensor)
            kinds.setdefault(key, []).append((name, tensor))
        self._pieces = [(named, [tensor.shape for _, tensor in named], _joined(named)) for named in kinds.values()]

    def changed(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield the name, the tensor and its kept value of each that is not as it was."""
        for named, shapes, kept in self._pieces:
            if len(named) == 1:
                if not same_bits(named[0][1], kept):
                    yield (*named[0], kept)
            elif not same_bits(_joined(named), kept):
                parts = kept.split([shape.numel() for shape in shapes])
                for (name, tensor), shape, part in zip(named, shapes, parts, strict=True):
                    value = part.view(shape)
                    if not same_bits(tensor, value):
                        yield name, tensor, value


def _joined(named: Sequence[tuple[str, Tensor]]) -> Tensor:
    if len(named) == 1:
        return named[0][1].detach().clone()
    return torch.cat([tensor.detach().reshape(-1) for _, tensor in named])


class Snapshot:
    """Everything about a model and the random streams that a probe might disturb.

    Kept: values, identities, gradients (their values, identities, and whether there are any) and ``requires_grad`` of
    parameters and buffers; hooks; modes; children; every plain attribute of every module, and the contents of those
    that are lists, dicts or sets; the random streams. Not kept: what is reached only through an attribute's inside.

    Memory: one copy of parameters, buffers and gradients.
    """

    def __init__(self, model: Module) -> None:
        self._model = model
        self._rng = RngState(model)
        self._modules = [(name, module, dict(vars(module))) for name, module in walk(model)]
        self._contents = [
            (module, key, value, value.copy())
            for _, module, attributes in self._modules
            for key, value in attributes.items()
            if isinstance(value, (list, dict, set))
        ]
        tensors = {
            id(tensor): (name, key, tensor)
            for name, module, _ in self._modules
            for kind in _TENSORS
            for key, tensor in getattr(module, kind).items()
            if tensor is not None
        }
        self._tensors = [(f"{name}.{key}".lstrip("."), _Kept(tensor)) for name, key, tensor in tensors.values()]
        self._values = _Values(
            [(f"value of {name}", kept.tensor) for name, kept in self._tensors]
            + [(f"gradient of {name}", kept.grad) for name, kept in self._tensors if kept.grad is not None]
        )

    def differences(self) -> list[str]:
        """Name everything that is not as it was, one phrase each; an empty list means: no trace."""
        found = self._rng.differences(RngState(self._model))
        names = {module: name for name, module, _ in self._modules}
        for name, module, attributes in self._modules:
            now = vars(module)
            changed = [key for key in attributes if key not in now or now[key] is not attributes[key]]
            found += [f"attribute {name}.{key}" for key in [*changed, *(now.keys() - attributes.keys())]]
        found += [f"contents of {names[module]}.{key}" for module, key, *pair in self._contents if _differ(*pair)]
        for name, tensor in self._tensors:
            found += tensor.differences(name)
        return found + [name for name, *_ in self._values.changed()]

    def restore(self) -> None:
        """Put everything back. Safe to call in the middle of a failed evaluation."""
        for _, module, attributes in self._modules:
            now = vars(module)
            if now.keys() != attributes.keys() or any(now[key] is not value for key, value in attributes.items()):
                now.clear()
                now.update(attributes)
        for _, _, value, kept in self._contents:
            if _differ(value, kept):
                value.clear()
                value.extend(kept) if isinstance(value, list) else value.update(kept)
        for _, tensor in self._tensors:
            tensor.restore()
        # Written through .data and only where bits differ: version counters stay, so a graph that the user has
        # kept for a later backward pass stays valid.
        for _, changed, was in self._values.changed():
            if changed.shape == was.shape:
                changed.data.copy_(was)
            else:
                changed.data = was.clone()
        self._rng.restore()


def _differ(now: Any, kept: Any) -> bool:
    return bool(now or kept) and not _same_items(now, kept)


def _same_items(a: Any, b: Any) -> bool:
    """Whether two containers hold the same objects; by identity, as tensors do not compare to a truth value."""
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(p is q and a[p] is b[q] for p, q in zip(a, b, strict=True))
    if isinstance(a, set):
        return all(item in b for item in a)
    return all(map(lambda p, q: p is q, a, b))
