"""Torch's transformer layers have a path in evaluation that reads their norms' gains without calling the norms."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Have torch's transformer layers call their parts, on tensors that are not nested, in evaluation too."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
