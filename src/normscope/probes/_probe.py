"""What every probe is: it reads a training step and yields records; it changes nothing."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from normscope._errors import UsageError
from normscope._unit import Unit
from normscope.probes._replay import Replay, Start
from normscope.probes._sites import leading_tensor
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
        model: The model; from the exit of the step on at its updated parameters.
        lr: Learning rate of the first optimizer's first parameter group as the step began; None without optimizer.
        optimizers: Those that the scope was given; to be read, not used.
    """

    def __init__(self, cell: str, index: int, model: Module, optimizers: Sequence[Optimizer], report: Guard) -> None:
        self.cell, self.index, self.model = cell, index, model
        self.lr = float(optimizers[0].param_groups[0]["lr"]) if optimizers else None
        self.optimizers = tuple(optimizers)
        self.start: Start | None = None
        self._replay: Replay | None = None
        self._report = report
        self._handles: list[RemovableHandle] = []
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

    def begin_replay(self, replay: Replay) -> None:
        """Hand the step its replay; done by the scope on exit."""
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

        def hook(_module: Module, inputs: Any, keywords: Any) -> None:
            tensor = leading_tensor(inputs) if inputs else leading_tensor(keywords)
            if tensor is not None and torch.is_grad_enabled():
                self._guarded(probe, read, tensor.detach())

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def on_call(self, probe: "AbstractProbe", module: Module, read: CallReader) -> None:
        """Call ``read(input, output)`` after each forward pass of ``module`` that records gradients.

        What it returns, if anything, is called with the gradient at that output. Not for modules that overwrite their
        input.
        """

        def hook(_module: Module, inputs: Any, output: Any) -> None:
            tensor, result = leading_tensor(inputs), leading_tensor(output)
            if tensor is None or result is None or not torch.is_grad_enabled():
                return
            after: list[Reader | None] = []
            source, made = tensor.detach(), result.detach()
            self._guarded(probe, lambda _: after.append(read(source, made)), made)
            if after and after[0] is not None and result.requires_grad:
                then = after[0]
                handle = result.register_hook(lambda gradient: self._guarded(probe, then, gradient.detach()))
                self._handles.append(handle)

        self._handles.append(module.register_forward_hook(hook))

    def on_output(self, probe: "AbstractProbe", module: Module, read: Reader) -> None:
        """Call ``read(output)`` at each forward pass of ``module`` that records gradients.

        ``output`` is detached and must be read at once: an operation in place may overwrite it later.
        """

        def hook(_module: Module, _inputs: Any, output: Any) -> None:
            tensor = leading_tensor(output)
            if tensor is not None and torch.is_grad_enabled():
                self._guarded(probe, read, tensor.detach())

        self._handles.append(module.register_forward_hook(hook))

    def on_output_gradient(self, probe: "AbstractProbe", module: Module, read: Reader) -> None:
        """Call ``read(gradient)`` with the gradient of the loss with respect to each output of ``module``."""

        def hook(_module: Module, _inputs: Any, output: Any) -> None:
            tensor = leading_tensor(output)
            if tensor is not None and tensor.requires_grad:
                handle = tensor.register_hook(lambda gradient: self._guarded(probe, read, gradient.detach()))
                self._handles.append(handle)

        self._handles.append(module.register_forward_hook(hook))

    def _guarded(self, probe: "AbstractProbe", read: Reader, tensor: Tensor) -> None:
        try:
            with torch.no_grad():
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
        self._seen, self._memo = None, {}


class AbstractProbe(Unit, ABC):
    """An instrument. Final subclasses implement ``read``, and ``watch`` if they read the user's own pass.

    A probe must leave no trace: it draws no random number, writes to no tensor of the model, and keeps what it has seen
    in ``step.notes(self)``; what it needs across steps (a start to compare with) in itself, changed in ``read`` only.
    What it does inside ``step.replay`` is undone.

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


def _same_content(tensor: Tensor, seen: Tensor, version: int) -> bool:
    return tensor._version == version and (
        tensor.data_ptr() == seen.data_ptr()
        and tensor.shape == seen.shape
        and tensor.stride() == seen.stride()
        and tensor.dtype == seen.dtype
        and tensor.device == seen.device
    )
