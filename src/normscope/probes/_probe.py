"""What every probe is: it reads a training step and yields records; it changes nothing."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from normscope._errors import UsageError
from normscope._unit import Unit
from normscope.modules.autocast import no_grad, without_autocast
from normscope.modules.batches import leading_tensor
from normscope.probes._replay import Replay, Start
from normscope.records import Record

Reader = Callable[[Tensor], None]
CallReader = Callable[[Tensor, Tensor], Reader | None]
T = TypeVar("T")
Guard = Callable[["AbstractProbe", Exception], None]


class Step:
    """One training step as the probes due at it see it.

    Attributes:
        cell: Name of the run.
        index: Optimizer steps taken before this one.
        model: The model, out of its wrappers; from the exit of the step on at its updated parameters.
        lr: Learning rate of the first optimizer's first parameter group as the step began; None without optimizer.
        scale: Loss scale of the user's backward pass; gradients are handed to readers without it.
        optimizers: Those that the scope was given; to be read, not used.
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
        self.optimizers = tuple(optimizers)
        self.start: Start | None = None
        self.gradients_scaled = scale != 1
        self._replay: Replay | None = None
        self._report = report
        self._handles: list[RemovableHandle] = []
        self._listeners: dict[Module, _Listener] = {}
        self._hooks: list[tuple[AbstractProbe, Module, Callable[..., None], bool]] = []
        self._notes: dict[int, dict[str, Any]] = {}
        self._found: dict[Any, dict[str, Module]] = {}
        self._values: dict[int, Tensor] = {}
        self._seen: tuple[Tensor, int] | None = None
        self._memo: dict[str, Any] = {}

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

    def modules(self, find: Callable[[Module], dict[str, Module]]) -> dict[str, Module]:
        """Return ``find(model)``, looked up once for all probes of this step."""
        if find not in self._found:
            self._found[find] = find(self.model)
        return self._found[find]

    def notes(self, probe: "AbstractProbe") -> dict[str, Any]:
        """Return what ``probe`` keeps until the step ends: an empty dict at its first use."""
        return self._notes.setdefault(id(probe), {})

    def keep_values(self, parameters: Iterable[Tensor]) -> None:
        """Copy these parameters as they are now, once for all probes; to be called in ``watch``."""
        for parameter in parameters:
            if id(parameter) not in self._values:
                self._values[id(parameter)] = parameter.detach().clone()

    def value_before(self, parameter: Tensor) -> Tensor:
        """Return the copy that ``keep_values`` made as the step began."""
        return self._values[id(parameter)]

    def memo(self, tensor: Tensor, key: str, make: Callable[[Tensor], T]) -> T:
        """Return ``make(tensor)``, computed once as long as probes look at the same unchanged tensor in a row.

        What a layer puts out is most often what the next takes in: its statistics are shared by all who read either.
        """
        seen = self._seen
        if seen is None or not _same_content(tensor, *seen):
            # Holding the tensor keeps its place from being given to another one.
            self._seen, self._memo = (tensor, tensor._version), {}
        if key not in self._memo:
            self._memo[key] = make(tensor)
        return self._memo[key]

    def recall(self, tensor: Tensor, key: str) -> Any:
        """Return what ``memo`` has kept of this tensor, or None."""
        known = self._seen is not None and _same_content(tensor, *self._seen)
        return self._memo.get(key) if known else None

    def on_input(self, probe: "AbstractProbe", module: Module, read: Reader) -> None:
        """Call ``read(input)`` before each forward pass of ``module`` that records gradients.

        ``input`` is the first floating-point tensor among the arguments, detached. It must be read at once: the module
        may overwrite it.
        """
        self._listener(module).inputs.append((probe, read))

    def on_call(self, probe: "AbstractProbe", module: Module, read: CallReader) -> None:
        """Call ``read(input, output)`` after each forward pass of ``module`` that records gradients.

        What it returns, if anything, is called with the gradient at that output. Not for modules that overwrite their
        input.
        """
        self._listener(module).calls.append((probe, read))

    def on_output(self, probe: "AbstractProbe", module: Module, read: Reader) -> None:
        """Call ``read(output)`` at each forward pass of ``module`` that records gradients.

        ``output`` is detached and must be read at once: an operation in place may overwrite it later.
        """
        self._listener(module).outputs.append((probe, read))

    def on_output_gradient(self, probe: "AbstractProbe", module: Module, read: Reader) -> None:
        """Call ``read(gradient)`` with the gradient of the loss with respect to each output of ``module``."""
        self._listener(module).gradients.append((probe, read))

    def on_module(
        self, probe: "AbstractProbe", module: Module, hook: Callable[..., None], *, before: bool = False
    ) -> None:
        """Have a forward hook of torch's own kind called, or a forward pre-hook: for what the other ways do not tell.

        It must change nothing and return nothing. A failure in it is the probe's, not the user's.
        """

        def guarded(*seen: Any) -> None:
            self._guarded([(probe, hook)], *seen)

        self._hooks.append((probe, module, guarded, before))

    def _listener(self, module: Module) -> "_Listener":
        if module not in self._listeners:
            self._listeners[module] = _Listener(self._guarded, self._handles.append, 1 / self.scale)
        return self._listeners[module]

    def listening(self) -> set["AbstractProbe"]:
        """Return the probes that have asked for what passes through modules."""
        heard = {
            probe
            for listener in self._listeners.values()
            for readers in (listener.inputs, listener.calls, listener.outputs, listener.gradients)
            for probe, _ in readers
        }
        return heard | {probe for probe, *_ in self._hooks}

    def attach(self) -> None:
        """Set the hooks at the modules that are listened to: one for all that listen to the same."""
        for module, listener in self._listeners.items():
            if listener.inputs:
                self._handles.append(module.register_forward_pre_hook(listener.before, with_kwargs=True))
            if listener.calls or listener.outputs or listener.gradients:
                self._handles.append(module.register_forward_hook(listener.after))
        for _, module, hook, before in self._hooks:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            self._handles.append(register(hook))

    def gradient(self, parameter: Parameter) -> Tensor | None:
        """Return the gradient in ``parameter.grad``, detached and without loss scale; None if there is none."""
        gradient = parameter.grad
        if gradient is None:
            return None
        gradient = gradient.detach()
        return _unscaled(gradient, 1 / self.scale) if self.gradients_scaled else gradient

    def _guarded(self, readers: "Iterable[tuple[AbstractProbe, Callable[..., T]]]", *seen: Any) -> list[T | None]:
        """Call all readers; one that fails is reported, and the others are called."""
        found: list[T | None] = []
        for probe, read in readers:
            try:
                found.append(read(*seen))
            except Exception as error:
                self._report(probe, error)
                found.append(None)
        return found

    def keep(self, handle: RemovableHandle) -> None:
        """Have ``handle`` removed when the step ends."""
        self._handles.append(handle)

    def detach(self) -> None:
        """Remove every hook that was set for this step."""
        for handle in reversed(self._handles):
            handle.remove()
        self._handles.clear()
        self._seen, self._memo = None, {}


class _Listener:
    """What is heard at a module: hands inputs, outputs and output gradients to all that asked for them."""

    __slots__ = ("_guarded", "_keep", "_unscale", "calls", "gradients", "inputs", "outputs")

    def __init__(self, guarded: Callable[..., Any], keep: Callable[[RemovableHandle], None], unscale: float) -> None:
        self._guarded, self._keep, self._unscale = guarded, keep, unscale
        self.inputs: list[tuple[AbstractProbe, Reader]] = []
        self.calls: list[tuple[AbstractProbe, CallReader]] = []
        self.outputs: list[tuple[AbstractProbe, Reader]] = []
        self.gradients: list[tuple[AbstractProbe, Reader]] = []

    def before(self, _module: Module, inputs: Any, keywords: Any) -> None:
        """Read the input of a call."""
        tensor = leading_tensor(inputs) if inputs else leading_tensor(keywords)
        if tensor is not None and torch.is_grad_enabled():
            with torch.no_grad(), without_autocast():
                self._guarded(self.inputs, tensor.detach())

    def after(self, _module: Module, inputs: Any, output: Any) -> None:
        """Read the output of a call, and have its gradient read on the way back."""
        tensor = leading_tensor(output)
        if tensor is None or not torch.is_grad_enabled():
            return
        gradients = self.gradients
        if self.calls or self.outputs:
            with torch.no_grad(), without_autocast():
                seen = tensor.detach()
                if self.calls and (source := leading_tensor(inputs)) is not None:
                    after = self._guarded(self.calls, source.detach(), seen)
                    asked = zip((probe for probe, _ in self.calls), after, strict=True)
                    gradients = gradients + [(probe, read) for probe, read in asked if read is not None]
                self._guarded(self.outputs, seen)
        if gradients and tensor.requires_grad:
            self._keep(tensor.register_hook(partial(self._back, gradients)))

    def _back(self, readers: list[tuple["AbstractProbe", Reader]], gradient: Tensor) -> None:
        with no_grad(), without_autocast():
            gradient = gradient.detach()
            self._guarded(readers, gradient if self._unscale == 1 else _unscaled(gradient, self._unscale))


def _unscaled(gradient: Tensor, factor: float) -> Tensor:
    """Take a loss scale off; a half gradient would leave its range by that and becomes a float."""
    wide = gradient if gradient.dtype in (torch.float32, torch.float64) else gradient.float()
    return wide * factor


class AbstractProbe(Unit, ABC):
    """An instrument. Final subclasses implement ``read``, and ``watch`` if they read the user's own pass.

    A probe must leave no trace: it draws no random number, writes to no tensor of the model, and keeps what it has seen
    in ``step.notes(self)``; what it needs across steps (a start to compare with) in itself, changed in ``read`` only.
    What it does inside ``step.replay`` is undone.

    Args:
        every: Read at every so-many-th step; None takes the scope's schedule.

    Attributes:
        REPLAYS: Whether it evaluates the loss again through ``step.replay``.
        STREAMING: Whether it is made to be read at every step: it reads the user's own pass, and decomposes nothing.
        every: As given.
    """

    HEADINGS = ("Measures", "Cost", "Reads wrongly when")
    REPLAYS: ClassVar[bool] = False
    STREAMING: ClassVar[bool] = False

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


def _same_content(tensor: Tensor, seen: Tensor, version: int) -> bool:
    return tensor._version == version and (
        tensor.data_ptr() == seen.data_ptr()
        and tensor.shape == seen.shape
        and tensor.stride() == seen.stride()
        and tensor.dtype == seen.dtype
        and tensor.device == seen.device
    )
