"""Autocast and the recording of gradients, as a pass had them and as arithmetic beside it needs them."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, TypeVar

import torch

_NOTHING = nullcontext()
T = TypeVar("T")

Precision = list[tuple[str, torch.dtype]]
"""The kinds of device on which autocast is on, each with its dtype."""


def autocast_now(devices: Iterable[str]) -> Precision:
    """Return the kinds of device, of these and the CPU, on which autocast is on, each with its dtype."""
    kinds = {*devices, "cpu"}
    return [(kind, torch.get_autocast_dtype(kind)) for kind in sorted(kinds) if torch.is_autocast_enabled(kind)]


def autocasting(kinds: Iterable[tuple[str, torch.dtype]]) -> ExitStack:
    """Return a context in which autocast is on for these, without a cache of cast weights."""
    stack = ExitStack()
    for kind, dtype in kinds:
        stack.enter_context(torch.autocast(kind, dtype, cache_enabled=False))
    return stack


def autocast_exactly(devices: Iterable[str], wanted: Precision) -> ExitStack:
    """Return a context in which autocast is on as wanted, and off on the other devices."""
    stack = autocasting(wanted)
    for kind in {*devices, "cpu"} - {kind for kind, _ in wanted}:
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def without_autocast() -> AbstractContextManager[Any]:
    """Return a context in which a probe's own arithmetic is not cast down by the user's autocast."""
    if not torch._C._is_any_autocast_enabled():
        return _NOTHING
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    if not kinds:
        return _NOTHING
    stack = ExitStack()
    for kind in kinds:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def beside(act: Callable[..., T], *args: Any) -> T:
    """Return ``act(*args)``, computed without recording of gradients and without the user's autocast.

    As in the contexts of both, at a fourth of their time: hooks are called many times a step.
    """
    recorded = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)
    try:
        if not torch._C._is_any_autocast_enabled():
            return act(*args)
        with without_autocast():
            return act(*args)
    finally:
        torch._C._set_grad_enabled(recorded)
