"""What every probe is: it reads a training step and yields records; it changes nothing."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from normscope._errors import UsageError
from normscope._unit import Unit
from normscope.probes._replay import Replay, Start
from normscope.probes._sites import leading_tensor
from normscope.probes._start import no_grad, without_autocast
from normscope.records import Record

Reader = Callable[[Tensor], None]
Guard = Callable[["AbstractProbe", Exception], None]


class Step:
    """One training step as the probes due at it see it.

    Attributes:
        cell: Name of the run.
        index: Optimizer steps taken before this one.
        model: The model, out of its wrappers; from the exit of the step on at its updated parameters.
        lr: Learning rate of the first optimizer's first parameter group as the step began; None without optimizer.
        scale: Loss scale of the user's backward pass; gradients are handed to readers without it.
    """

    def __init__(
        self,
        cell: str,
        index: int,
        model: Module,
        optimizers: Sequence[Optimizer],
        report: Guard,
        *,
        scale: float = 1.0,
    ) -> None:
        self.cell, self.index, self.model, self.scale = cell, index, model, scale
        self.lr = float(optimizers[0].param_groups[0]["lr"]) if optimizers else None
        self.start: Start | None = None
        self.gradients_scaled = scale != 1
        self._replay: Replay | None = None
        self._report = report
        self._handles: list[RemovableHandle] = []
        self._listeners: dict[Module, _Listener] = {}
        self._notes: dict[int, dict[str, Any]] = {}

    @property
    def replay(self) -> Replay:
        """The loss of this step as a function of the parameters; open while probes with ``REPLAYS`` read.

        Raises:
            UsageError: Asked for by a probe that does not declare ``REPLAYS``.
        """
        if self._replay is None:
            raise UsageError("a probe that evaluates the loss again must declare REPLAYS = True")
        return self._replay

    def begin_replay(self, replay: Replay | None) -> None:
        """Hand the step its replay, or take it away; done by the scope on exit."""
        self._replay = replay

    def notes(self, probe: "AbstractProbe") -> dict[str, Any]:
        """Return what ``probe`` keeps until the step ends: an empty dict at its first use."""
        return self._notes.setdefault(id(probe), {})

    def on_output(self, probe: "AbstractProbe", module: Module, read: Reader) -> None:
        """Call ``read(output)`` at each forward pass of ``module`` that records gradients.

        ``output`` is detached and must be read at once: an operation in place may overwrite it later.
        """
        self._listener(module).outputs.append((probe, read))

    def on_output_gradient(self, probe: "AbstractProbe", module: Module, read: Reader) -> None:
        """Call ``read(gradient)`` with the gradient of the loss with respect to each output of ``module``."""
        self._listener(module).gradients.append((probe, read))

    def _listener(self, module: Module) -> "_Listener":
        if module not in self._listeners:
            self._listeners[module] = _Listener(self._guarded, self._handles.append, 1 / self.scale)
        return self._listeners[module]

    def listening(self) -> set["AbstractProbe"]:
        """Return the probes that read module outputs or their gradients."""
        return {
            probe
            for listener in self._listeners.values()
            for readers in (listener.outputs, listener.gradients)
            for probe, _ in readers
        }

    def attach(self) -> None:
        """Set one hook at each module that is listened to."""
        for module, listener in self._listeners.items():
            self._handles.append(module.register_forward_hook(listener))

    def gradient(self, parameter: Parameter) -> Tensor | None:
        """Return the gradient in ``parameter.grad``, detached and without loss scale; None if there is none."""
        gradient = parameter.grad
        if gradient is None:
            return None
        gradient = gradient.detach()
        return _unscaled(gradient, 1 / self.scale) if self.gradients_scaled else gradient

    def _guarded(self, readers: Sequence[tuple["AbstractProbe", Reader]], tensor: Tensor) -> None:
        for probe, read in readers:
            try:
                read(tensor)
            except Exception as error:
                self._report(probe, error)

    def keep(self, handle: RemovableHandle) -> None:
        """Have ``handle`` removed when the step ends."""
        self._handles.append(handle)

    def detach(self) -> None:
        """Remove every hook that was set for this step."""
        for handle in reversed(self._handles):
            handle.remove()
        self._handles.clear()


class _Listener:
    """The one hook at a module: hands its outputs, and their gradients, to all that asked for them."""

    __slots__ = ("_guarded", "_keep", "_unscale", "gradients", "outputs")

    def __init__(self, guarded: Callable[..., None], keep: Callable[[RemovableHandle], None], unscale: float) -> None:
        self._guarded, self._keep, self._unscale = guarded, keep, unscale
        self.outputs: list[tuple[AbstractProbe, Reader]] = []
        self.gradients: list[tuple[AbstractProbe, Reader]] = []

    def __call__(self, _module: Module, _inputs: Any, output: Any) -> None:
        tensor = leading_tensor(output)
        if tensor is None or not torch.is_grad_enabled():
            return
        if self.outputs:
            with no_grad(), without_autocast():
                self._guarded(self.outputs, tensor.detach())
        if self.gradients and tensor.requires_grad:
            self._keep(tensor.register_hook(self._gradient))

    def _gradient(self, gradient: Tensor) -> None:
        with no_grad(), without_autocast():
            gradient = gradient.detach()
            self._guarded(self.gradients, gradient if self._unscale == 1 else _unscaled(gradient, self._unscale))


def _unscaled(gradient: Tensor, factor: float) -> Tensor:
    """Take a loss scale off; a half gradient would leave its range by that and becomes a float."""
    wide = gradient if gradient.dtype in (torch.float32, torch.float64) else gradient.float()
    return wide * factor


class AbstractProbe(Unit, ABC):
    """An instrument. Final subclasses implement ``read``, and ``watch`` if they read the user's own pass.

    A probe must leave no trace: it draws no random number, writes to no tensor of the model, and keeps what it has seen
    in ``step.notes(self)`` only. What it does inside ``step.replay`` is undone.

    Args:
        every: Read at every so-many-th step; None takes the scope's schedule.

    Attributes:
        REPLAYS: Whether it evaluates the loss again through ``step.replay``.
        every: As given.
    """

    HEADINGS = ("Measures", "Cost", "Reads wrongly when")
    REPLAYS: ClassVar[bool] = False

    def __init__(self, *, every: int | None = None) -> None:
        self.page()  # a probe that does not describe itself is refused here, not in the report
        if every is not None and every < 1:
            raise UsageError(f"{self.CODE}: every={every} must be 1 or more")
        self.every = every

    def watch(self, step: Step) -> None:
        """Set the hooks that this step needs; called as the step begins."""

    def before_update(self, step: Step, parameters: Mapping[int, Parameter]) -> None:
        """Look at gradients right before an optimizer changes these parameters (keyed by ``id``)."""

    @abstractmethod
    def read(self, step: Step) -> Iterator[Record]:
        """Yield the values of this step; called as the step ends."""

    def record(self, step: Step, site: str, name: str, value: float, unit: str = "1") -> Record:
        """Make a record of this probe."""
        return Record(step.cell, step.index, self.CODE, site, name, float(value), unit)
