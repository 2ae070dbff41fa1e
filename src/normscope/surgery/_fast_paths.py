"""Torch's transformer layers have a path in evaluation that reads their norms' gains without calling the norms."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch.nn import Module, TransformerEncoder, TransformerEncoderLayer


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Have torch's transformer layers call their parts, on tensors that are not nested, in evaluation too."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def leave_fast_paths(model: Module, changed: Collection[str]) -> tuple[str, ...]:
    """Have torch's encoder layers call their norms: the fast path reads gains and shifts of norms that went.

    Args:
        model: The model, changed.
        changed: Qualified names of the norms that were changed.

    Returns:
        What is to be said of it.
    """
    closed = []
    for path, module in model.named_modules():
        inner = {f"{path}.{name}" if path else name for name in ("norm1", "norm2")}
        if isinstance(module, TransformerEncoderLayer) and inner & set(changed):
            module.activation_relu_or_gelu = 0
            closed.append(module)
    for module in model.modules():
        if isinstance(module, TransformerEncoder) and any(layer in closed for layer in module.layers):
            module.use_nested_tensor = False
    return (f"{len(closed)} TransformerEncoderLayer: torch's fast path is off",) if closed else ()
