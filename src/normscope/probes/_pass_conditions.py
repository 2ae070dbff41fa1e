"""Under which modes and autocast settings a forward pass ran, and how probes compute outside of them."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch.nn import Module


class PassConditions:
    """Train or eval mode of every module, and the autocast settings, as they are now: to run another pass under them.

    Args:
        modules: The modules whose modes are noted.
        devices: Types of the devices that the pass computes on; the CPU is always among them.

    Attributes:
        modes: Each module with whether it is in train mode.
        autocast: The device types for which autocast is on, each with its dtype.
    """

    def __init__(self, modules: Sequence[Module], devices: Iterable[str]) -> None:
        self.modes = [(module, module.training) for module in modules]
        kinds = {*devices, "cpu"}
        self.autocast = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)]

    def set_modes(self) -> None:
        """Put the modules into the noted modes."""
        for module, mode in self.modes:
            module.training = mode

    def autocasting(self) -> ExitStack:
        """Return a context in which operations run in the noted precision.

        The cache of cast weights is off: at other parameters it would hand out the weights of the first ones.
        """
        stack = ExitStack()
        for kind, dtype in self.autocast:
            stack.enter_context(torch.autocast(kind, dtype, cache_enabled=False))
        return stack


_NOTHING = nullcontext()


def no_grad() -> AbstractContextManager[Any]:
    """Return ``torch.no_grad()`` where gradients are recorded; in a backward pass they are not."""
    return torch.no_grad() if torch.is_grad_enabled() else _NOTHING


def without_autocast() -> AbstractContextManager[Any]:
    """Return a context in which the user's autocast does not cast a probe's own arithmetic down."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    if not kinds:
        return _NOTHING
    stack = ExitStack()
    for kind in kinds:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack
