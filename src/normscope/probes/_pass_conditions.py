"""The conditions of a forward pass: which modules were in train mode, and in which precision each of them ran."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from normscope._errors import Interruption
from normscope.modules.autocast import Precision, autocast_exactly, autocast_now, autocasting
from normscope.modules.hooks import Hook, forward_replaced
from normscope.modules.wrapped import hookable, unwrap


class PassConditions:
    """Train or eval mode of every module, and the autocast settings, to run another pass under them.

    They are those of the moment until ``listen`` has heard the first module run: a trainer may call any module of the
    model first, under an autocast of its own, and different modules under different settings.

    Args:
        modules: The modules whose modes are noted.
        devices: Types of the devices that the pass computes on; the CPU is always among them.

    Attributes:
        modes: Each module with whether it is in train mode.
        autocast: The device types for which autocast is on, each with its dtype, around the first module.
    """

    def __init__(self, modules: Sequence[Module], devices: Iterable[str]) -> None:
        self._modules, self._devices = modules, set(devices)
        self.modes = [(module, module.training) for module in modules]
        self.autocast = autocast_now(self._devices)
        self._known: dict[str, bool] = {}
        self._ran: dict[Module, list[Precision]] = {}
        self._turns: dict[Module, int] = {}

    def listen(
        self, model: Module, keep: Callable[[RemovableHandle], object], known: dict[str, bool] | None = None
    ) -> None:
        """Note modes and settings as modules run with gradients.

        Args:
            model: The model, in its wrappers.
            keep: Must remove the hooks when the step ends.
            known: What ``settle`` has found at earlier steps, and adds to.
        """
        self._known = {} if known is None else known
        for module in hookable(model):
            keep(module.register_forward_pre_hook(Hook(self._note)))

    def _note(self, called: Module, *_: Any) -> None:
        if not torch.is_grad_enabled():
            return
        now = autocast_now(self._devices)
        if not self._ran:
            self.modes = [(module, module.training) for module in self._modules]
            self.autocast = now
        self._ran.setdefault(unwrap(called), []).append(now)

    @property
    def epsilon(self) -> float:
        """The spacing at 1 of the coarsest type that autocast had a module compute in; 0 where it was off."""
        every = [self.autocast, *(one for settings in self._ran.values() for one in settings)]
        return max((torch.finfo(dtype).eps for precision in every for _, dtype in precision), default=0.0)

    def set_modes(self) -> None:
        """Put the modules into the noted modes."""
        for module, mode in self.modes:
            module.training = mode

    def autocasting(self) -> ExitStack:
        """Return a context in which operations run in the precision that was noted first.

        The cache of cast weights is off: at other parameters it would return the weights of the first ones.
        """
        return autocasting(self.autocast)

    def settle(self, run: Callable[[], object]) -> None:
        """Find out whether ``run`` turns autocast on by itself; then it is not turned on around it a second time.

        ``run`` is stopped as it calls its first module. Asked once, and only if that module ran under autocast.
        """
        if not self.autocast:
            return
        key = str(self.autocast)
        if key not in self._known:
            self._known[key] = self._turned_on_by(run)
        if self._known[key]:
            self.autocast = []

    def _turned_on_by(self, run: Callable[[], object]) -> bool:
        def stop(module: Module, _: Any) -> Callable[..., Any]:
            def instead(*_: Any, **__: Any) -> Any:
                raise _StoppedError(module, autocast_now(self._devices))

            return instead

        try:
            with autocast_exactly(self._devices, []), forward_replaced(list(self._ran), stop), suppress(Exception):
                run()
        except _StoppedError as stopped:
            return stopped.precision == self._ran[stopped.module][0]
        return False

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Have operations run in the noted precision until the block ends, each module in its own."""
        self._turns.clear()
        own = [module for module, settings in self._ran.items() if any(one != self.autocast for one in settings)]
        every = list(self._ran) if own else []  # one within another goes back to its own
        with self.autocasting(), forward_replaced(every, self._in_its_own):
            yield

    def _in_its_own(self, module: Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        settings = self._ran[module]

        def run(*args: Any, **kwargs: Any) -> Any:
            # A module that is called several times has had a setting at each call.
            turn = self._turns.get(module, 0)
            self._turns[module] = turn + torch.is_grad_enabled()
            wanted = settings[turn % len(settings)]
            if wanted == autocast_now(self._devices):
                return forward(*args, **kwargs)
            with autocast_exactly(self._devices, wanted):
                return forward(*args, **kwargs)

        return run


class _StoppedError(Interruption):
    """Ends a run of the loss at its first module; no exception, so that the loss does not catch it."""

    def __init__(self, module: Module, precision: Precision) -> None:
        self.module, self.precision = module, precision
