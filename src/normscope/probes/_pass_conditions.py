"""The conditions of a forward pass: which modules were in train mode, and in which precision it ran."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from torch.nn import Module

from normscope.modules.autocast import autocast_now, autocasting


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
        self.autocast = autocast_now(devices)

    def set_modes(self) -> None:
        """Put the modules into the noted modes."""
        for module, mode in self.modes:
            module.training = mode

    def autocasting(self) -> ExitStack:
        """Return a context in which operations run in the noted precision.

        The cache of cast weights is off: at other parameters it would return the weights of the first ones.
        """
        return autocasting(self.autocast)
