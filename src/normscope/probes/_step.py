"""One training step as probes see it: where they attach hooks, take notes, and read what was heard."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.modules.autocast import beside
from normscope.modules.backward import Removable
from normscope.modules.channels import Channels, channels
from normscope.modules.contents import Content, Contents, Copy, is_small, same_content
from normscope.modules.hooks import ForwardHooks, Hook, TensorHooks
from normscope.modules.normalized import is_normalized
from normscope.modules.sites import Tree, uses_batch
from normscope.probes._backward_end import BackwardEnd
from normscope.probes._kept_values import KeptValues
from normscope.probes._listener import CallReader, Listener, NodeReader, Reader, unscaled
from normscope.probes._replay import Replay
from normscope.probes._start_state import StartState

FailureReport = Callable[[Any, Exception], None]
"""Called with a probe and the exception that its reader raised."""
T = TypeVar("T")


class Step(KeptValues):
    """One training step as the probes due at it see it.

    Attributes:
        cell: Name of the run.
        index: Number of optimizer steps before this one.
        model: The model without its wrappers; once the step has ended, at its updated parameters.
        lr: Learning rate of the first optimizer's first parameter group as the step began; None without optimizer.
        scale: Loss scale of the user's backward pass; readers get gradients without it.
        optimizers: The user's optimizers; to be read, not used.
        start: The state with which the step began, if a probe evaluates the loss again.
        updating: Whether an optimizer is in its step at the moment: a backward pass is then its closure's.
        gradients_scaled: Whether ``parameter.grad`` carries the loss scale at the moment.
    """

    def __init__(
        self,
        cell: str,
        index: int,
        model: Module,
        optimizers: Sequence[Optimizer],
        report: FailureReport,
        *,
        scale: float = 1.0,
    ) -> None:
        self.cell, self.index, self.model, self.scale = cell, index, model, scale
        self.take_optimizers(optimizers)
        self.start: StartState | None = None
        self.gradients_scaled = scale != 1
        self.updating = False
        self._replay: Replay | None = None
        self._report = report
        self._tensor_hooks = TensorHooks()
        self._handles: list[Removable] = [self._tensor_hooks]
        self._listeners: dict[Module, Listener] = {}
        self._backward_ends: list[tuple[list[Tensor], Callable[[], None]]] = []
        self._notes: dict[int, dict[str, Any]] = {}
        self._modules: dict[Any, dict[str, Module]] = {}
        self._tree: Tree | None = None
        super().__init__()
        self._memo_of: tuple[Tensor, int] | None = None
        self._memo: dict[str, Any] = {}
        self._contents = Contents()

    def take_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        """Note the user's optimizers, and the learning rate of the first."""
        self.optimizers = tuple(optimizers)
        groups = optimizers[0].param_groups if optimizers else ()
        self.lr = float(groups[0]["lr"]) if groups and "lr" in groups[0] else None

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
        """Give the step its replay, or take it away with None; done by the recorder as the step ends."""
        self._replay = replay

    def modules(self, find: Callable[[Module, Tree], dict[str, Module]]) -> dict[str, Module]:
        """Return ``find(model, tree)``, looked up once for all probes of this step."""
        if find not in self._modules:
            if self._tree is None:
                self._tree = Tree(self.model)
            self._modules[find] = find(self.model, self._tree)
        return self._modules[find]

    def notes(self, probe: Hashable) -> dict[str, Any]:
        """Return what ``probe`` keeps until the step ends: an empty dict at its first use."""
        return self._notes.setdefault(id(probe), {})

    def memo(self, tensor: Tensor, key: str, make: Callable[[Tensor], T]) -> T:
        """Return ``make(tensor)``, computed once as long as probes look at the same unchanged tensor in a row.

        The output of a layer is most often the input of the next: all probes that read either share its statistics.
        """
        last = self._memo_of
        if last is None or not same_content(tensor, *last):
            # As long as the tensor is held, its memory is not given to another one.
            self._memo_of, self._memo = (tensor, tensor._version), {}
        if key not in self._memo:
            self._memo[key] = make(tensor)
        return self._memo[key]

    def channels(self, x: Tensor) -> Channels:
        """Return the moments of a batch by channel, computed at once, and once for all probes."""
        return self.memo(x, "channels", channels)

    def content(self, x: Tensor) -> Content:
        """Note the moments of a batch ``(N, C, *)`` by channel, once for all probes; there after ``settle``.

        A small batch is copied, and reduced with all others in ``settle``; a large one is reduced at once.
        """
        return self.memo(x, "content", self._content)

    def _content(self, x: Tensor) -> Content:
        if is_small(x):
            return self._contents.add(x, None)
        moments = self.channels(x)
        return self._contents.add(x, (moments.mean, moments.variance))

    def normalized_content(self, module: Module, x: Tensor, output: Tensor) -> Content | None:
        """Note the moments of a large output of a batch norm without a read of it: they follow from the input's.

        None where they do not, or not to rounding: the output is not that of torch's own operation, is small or of half
        precision, or the mean of the input is far from zero.

        Args:
            module: The batch norm.
            x: Its input, detached.
            output: What its call returned.
        """
        if is_small(output) or not uses_batch(module) or not is_normalized(module, output):
            return None
        moments = self.channels(x)
        if moments.about is not None or moments.shift is None:
            return None
        variance = moments.variance / (moments.variance + float(module.eps))  # type: ignore[arg-type]
        weight, bias = module.weight, module.bias
        mean = torch.zeros_like(variance) if bias is None else bias.detach().double()  # type: ignore[operator]
        if weight is not None:
            variance = variance * weight.detach().double().square()  # type: ignore[operator]
        # A value that is not finite leaves no finite output in its channel.
        mean = torch.where(moments.variance.isfinite(), mean, moments.variance * torch.nan)
        return self._contents.add(output, (mean, variance))

    def copied(self, tensor: Tensor) -> Copy:
        """Copy a small tensor, or a sample of a large one; on the host after ``settle``."""
        return self._contents.copied(tensor)

    def settle(self) -> None:
        """Reduce all small contents together, and bring all to the host in one transfer; called in ``read``."""
        self._contents.settle()

    def on_input(self, probe: Hashable, module: Module, read: Reader) -> None:
        """Call ``read(input)`` before each forward pass of ``module`` that records gradients.

        ``input`` is the first floating-point tensor among the arguments, detached. The reader must not keep it: the
        module may overwrite it.
        """
        self._listener(module).inputs.append((probe, read))

    def on_call(self, probe: Hashable, module: Module, read: CallReader) -> None:
        """Call ``read(input, output)`` after each forward pass of ``module`` that records gradients.

        If the reader returns a function, that function is called with the gradient at this output. Not for modules
        that overwrite their input.
        """
        self._listener(module).calls.append((probe, read))

    def on_backward_of(self, probe: Hashable, output: Any, read: NodeReader) -> None:
        """Call ``read(inputs, outputs)`` with the gradients that pass the operation which made ``output``.

        ``outputs`` are the gradients of its outputs, ``inputs`` those that it has made of them. All carry the loss
        scale.
        """

        def hook(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None]) -> None:
            beside(self._guarded, [(probe, read)], inputs, outputs)

        self._handles.append(output.grad_fn.register_hook(hook))

    def on_output(self, probe: Hashable, module: Module, read: Reader) -> None:
        """Call ``read(output)`` at each forward pass of ``module`` that records gradients.

        ``output`` is detached. The reader must not keep it: an operation in place may overwrite it later.
        """
        self._listener(module).outputs.append((probe, read))

    def on_output_gradient(self, probe: Hashable, module: Module, read: Reader) -> None:
        """Call ``read(gradient)`` with the gradient of the loss with respect to each output of ``module``."""
        self._listener(module).gradients.append((probe, read))

    def on_module(self, probe: Hashable, module: Module, hook: Callable[..., None], *, before: bool = False) -> None:
        """Register a forward hook of torch's own kind, or with ``before`` a forward pre-hook.

        It must change nothing and return nothing. An exception in it switches the probe off and does not reach the
        user's pass.
        """
        listener = self._listener(module)
        (listener.hooks_before if before else listener.hooks_after).append((probe, hook))

    def _listener(self, module: Module) -> "Listener":
        if module not in self._listeners:
            self._listeners[module] = Listener(self._guarded, self._tensor_hooks, 1 / self.scale)
        return self._listeners[module]

    def listening(self) -> set[Hashable]:
        """Return the probes that have asked for inputs, outputs or gradients of modules."""
        return {probe for listener in self._listeners.values() for probe, _ in listener.readers()}

    def attach(self) -> None:
        """Register the hooks: one a module, however many probes read it."""
        hooks = ForwardHooks()
        self._handles.append(hooks)
        for module, listener in self._listeners.items():
            if listener.inputs or listener.hooks_before:
                hooks.add_before(module, listener.before)
            if listener.calls or listener.outputs or listener.gradients or listener.hooks_after:
                hooks.add_after(module, listener.after)

    def on_backward_end(self, probe: Hashable, parameters: Iterable[Tensor], read: Callable[[], None]) -> None:
        """Call ``read()`` whenever a backward pass that reaches one of these parameters has ended.

        By then data-parallel wrappers have averaged the gradients, and nothing has clipped them. Within a checkpointed
        model it may be called more than once a pass: the last call is the pass's end.
        """

        def guarded() -> None:
            self.gradients_scaled = self.scale != 1
            beside(self._guarded, [(probe, read)])

        self._backward_ends.append((list(parameters), guarded))

    def attach_to_backward(self) -> None:
        """Register the hooks on parameters that tell when a backward pass ends."""
        ended = BackwardEnd([read for _, read in self._backward_ends])
        parameters = {id(one): one for some, _ in self._backward_ends for one in some}
        ended.attach(parameters.values(), self._tensor_hooks)

    def gradient(self, parameter: Parameter) -> Tensor | None:
        """Return the gradient in ``parameter.grad``, detached and without loss scale; None if there is none."""
        gradient = parameter.grad
        if gradient is None:
            return None
        gradient = gradient.detach()
        return unscaled(gradient, 1 / self.scale) if self.gradients_scaled else gradient

    def _guarded(self, readers: Iterable[tuple[Hashable, Callable[..., T]]], *args: Any) -> list[T | None]:
        """Call all readers; an exception in one of them is reported, and the others are still called."""
        results: list[T | None] = []
        for probe, read in readers:
            try:
                results.append(read(*args))
            except Exception as error:
                self._report(probe, error)
                results.append(None)
        return results

    def keep(self, handle: "Removable") -> None:
        """Have ``handle`` removed when the step ends."""
        self._handles.append(handle)

    def detach(self) -> None:
        """Remove every hook that was set for this step."""
        for handle in reversed(self._handles):
            handle.remove()
        self._handles.clear()
        Hook.clear_copies()
        self._memo_of, self._memo = None, {}

    def release(self) -> None:
        """Let go of all that was noted; called once the probes have read.

        Readers hold the step, and the step them: Python's collector would leave the copies of many steps in memory, and
        has to search for them. So it is with who takes the failures, who holds the batch.
        """
        self._report = lambda *_: None
        for kept in (self._listeners, self._notes, self._values, self._changes, self._modules, self._memo):
            kept.clear()
        self._backward_ends.clear()
        self._memo_of, self._replay, self._tree, self._contents = None, None, None, Contents()
