"""Values of many tensors: kept, compared bit for bit, and put back without moving a version counter."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SMALL = 1 << 14  # elements
_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits (equal NaNs are the same, 0.0 and -0.0 are not).

    Tensors of different shape, dtype, device or layout do not; tensors on the meta device have no bits that could
    differ. False where a layout cannot be compared.
    """
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.layout != b.layout:
        return False
    if a.is_meta:
        return True
    if a.layout == torch.sparse_coo:
        a, b = a.coalesce(), b.coalesce()
        return same_bits(a.indices(), b.indices()) and same_bits(a.values(), b.values())
    if a.layout != torch.strided:
        parts = (*_COMPRESSED[a.layout], "values") if a.layout in _COMPRESSED else ()
        return bool(parts) and all(same_bits(getattr(a, part)(), getattr(b, part)()) for part in parts)
    whole = _WORDS.get(a.element_size())
    if whole is None:  # complex128: two words an element
        a, b, whole = torch.view_as_real(a), torch.view_as_real(b), torch.int64
    return torch.equal(a.detach().view(whole), b.detach().view(whole))


class Values:
    """Values of many tensors, kept and compared in one piece a kind: calls, not bytes, are what small ones cost.

    Memory: one copy of the tensors, and a reference to the memory that each of them has now.

    Args:
        named: Pairs of a name and a tensor.
    """

    def __init__(self, named: Sequence[tuple[str, Tensor]]) -> None:
        kinds: dict[object, list[tuple[str, Tensor, Tensor]]] = {}
        for name, tensor in named:
            plain = type(tensor) in (Tensor, Parameter) and tensor.layout == torch.strided
            # An alias of the tensor's own memory, to which the tensor comes back if it is moved or cast.
            memory = tensor.detach() if plain else tensor
            # What lies in memory in any other way than row by row is kept by itself: gathering would reorder it. So is
            # what is large on a CPU, where a call costs less than the gathering; a GPU is waited for at every call.
            small = tensor.numel() <= _SMALL or not tensor.is_cpu
            together = plain and small and tensor.element_size() in _WORDS and tensor.is_contiguous()
            key = (tensor.dtype, tensor.device) if together else id(tensor)
            kinds.setdefault(key, []).append((name, tensor, memory))
        self._pieces = [(held, _joined(held)) for held in kinds.values()]

    def changed(self) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
        """Yield each tensor that is not as it was: its name, the tensor, its memory, its kept value.

        The value is None where the memory holds it still, and the tensor has been given other memory.
        """
        for held, kept in self._pieces:
            whole = same_bits(_memory(held), kept)
            if whole and not any(_moved(tensor, memory) for _, tensor, memory in held):
                continue
            for (name, tensor, memory), part in zip(held, _split(held, kept), strict=True):
                value = None if whole or same_bits(memory, part) else part
                if value is not None or _moved(tensor, memory):
                    yield name, tensor, memory, value

    def restore(self) -> None:
        """Put every tensor back."""
        for _, tensor, memory, value in self.changed():
            put_back(tensor, memory, value)


@torch.no_grad()
def put_back(tensor: Tensor, memory: Tensor, value: Tensor | None) -> None:
    """Give a tensor its own memory back, and the memory its value.

    Written through ``.data``: version counters stay, so a graph that the user has kept for a later backward pass stays
    valid.
    """
    if _moved(tensor, memory):
        tensor.data = memory
    if value is None:
        return
    if memory.layout != torch.strided or memory.shape != value.shape:
        tensor.data = value.clone()  # a sparse tensor's .data has indices and values of its own
    else:
        memory.data.copy_(value)


def _moved(tensor: Tensor, memory: Tensor) -> bool:
    # Tensors whose memory is not referred to, sparse ones say, and those on the meta device cannot be asked.
    return tensor is not memory and (tensor.dtype != memory.dtype or not (memory.is_meta or tensor.is_set_to(memory)))


def _memory(held: Sequence[tuple[str, Tensor, Tensor]]) -> Tensor:
    return held[0][2] if len(held) == 1 else torch.cat([memory.reshape(-1) for _, _, memory in held])


def _joined(held: Sequence[tuple[str, Tensor, Tensor]]) -> Tensor:
    return held[0][2].detach().clone() if len(held) == 1 else _memory(held)


def _split(held: Sequence[tuple[str, Tensor, Tensor]], kept: Tensor) -> list[Tensor]:
    if len(held) == 1:
        return [kept]
    sizes = [memory.numel() for _, _, memory in held]
    return [part.view(memory.shape) for part, (_, _, memory) in zip(kept.split(sizes), held, strict=True)]
