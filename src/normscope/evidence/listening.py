"""Hooks on a model in training, and what they hear at every norm. The user's pass is the same with them as without."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from normscope.evidence.gradient_sums import GradientSums
from normscope.evidence.places import Place, Places
from normscope.evidence.sequences import as_sequences, tail_share
from normscope.modules.batches import finite, kept, leading_tensor, tensors
from normscope.modules.channels import channels
from normscope.modules.hooks import Hook
from normscope.modules.values import same_bits
from normscope.modules.wrapped import calls_step_hooks
from normscope.records import Record


@dataclass(slots=True)
class NormCall:
    """One call of a batch norm during training.

    Attributes:
        path: Qualified name of the norm.
        step: Number of the training step, from 0.
        update: Updates that the optimizer had made before.
        order: Number of the call among all calls of norms.
        forward: Number of forward passes of the whole model that had begun; 0 where only parts of it are called.
        place: Place of the call in its step: see ``evidence.places``.
        backward: Number of backward passes through norms that had begun in its step.
        training: Whether the norm was in train mode.
        grad: Whether gradients were recorded.
        recomputed: Whether it happened inside a backward pass, as under activation checkpointing.
        updated: Whether it changed the running statistics.
        samples: Length of the batch axis.
        positions: Positions of a sample: 1 for ``(N, C)``.
        mean: Mean of each channel ``(C,)``, float64.
        variance: Variance of each channel ``(C,)``, divisor N * positions, float64.
        finite: Whether every value of the input was finite.
        tail: Share of positions that lie in a constant tail of their sequence, where the input is sequences in one of
            the layouts of ``evidence.as_sequences``; else 0.
        dtype: Dtype of the input.
        channels_last: Whether the input lies in memory with its channels last.
        stale: Whether the running statistics had changed between this call in eval mode and its backward pass.
        graph: Torch's number of the last backward pass through the call; -1 if there was none.
    """

    path: str
    step: int
    update: int
    order: int
    training: bool
    grad: bool
    recomputed: bool
    updated: bool = False
    samples: int = 0
    positions: int = 1
    mean: Tensor = field(default_factory=lambda: torch.empty(0))
    variance: Tensor = field(default_factory=lambda: torch.empty(0))
    finite: bool = True
    tail: float = 0.0
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    forward: int = 0
    place: Place = (0, 0)
    backward: int = 0
    stale: bool = False
    graph: int = -1

    @property
    def count(self) -> int:
        """Values a channel."""
        return self.samples * self.positions


@dataclass(slots=True)
class Training:
    """What a few training steps showed.

    Attributes:
        calls: Calls of batch norms, in order.
        records: Records of gradient flow and saturation at every step.
        losses: Loss of each step where the loss function was called, in order of steps; NaN where it was not.
        steps: Number of training steps.
        updates: Number of updates that the optimizer made; ``steps`` where none was given.
        inputs: Arguments of the first call of the model: positional ones and keywords, detached.
        call_logs: For each step how often each childless module was called.
        broken: First module whose output was not finite though its input was, or words for code between modules, and
            the step; None if there is none.
        batch_broken: Step of the first batch that was itself not finite; None if there is none.
        failed: What a step raised, in one line, if a later one than the first did: then no more were made.
        modes: By qualified name whether a module that was called with gradients was in train mode; empty where that
            was not noted.
        beside: Calls of batch norms of other modules than the model, in order; ``path`` begins with the module's name.
        moved: The ``id`` of every parameter, of the model and of other modules, that was changed.
        sums: By torch's number of a backward pass that wrote gradients of the optimizer's parameters: the updates that
            were made before, and the number of the sum of gradients. Passes with the same two accumulate.
        sums_begun: Number of the last sum; 0 is the sum that was under way before.
    """

    calls: list[NormCall] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    steps: int = 0
    updates: int = 0
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    call_logs: list[Counter[str]] = field(default_factory=list)
    broken: tuple[str, int] | None = None
    batch_broken: int | None = None
    failed: str = ""
    modes: dict[str, bool] = field(default_factory=dict)
    beside: list[NormCall] = field(default_factory=list)
    moved: set[int] = field(default_factory=set)
    sums: dict[int, tuple[int, int]] = field(default_factory=dict)
    sums_begun: int = 0

    def of(self, path: str, *, training: bool | None = None) -> list[NormCall]:
        """Return the calls of one norm, of one mode if asked for."""
        return [call for call in self.calls if call.path == path and (training is None or call.training is training)]

    def values(self, probe: str, name: str, *, step: int | None = 0) -> dict[str, float]:
        """Return a probe's values by site, of one step or (None) their mean over steps."""
        found: dict[str, list[float]] = {}
        for record in self.records:
            if record.probe == probe and record.name == name and (step is None or record.step == step):
                found.setdefault(record.site, []).append(record.value)
        return {site: math.fsum(values) / len(values) for site, values in found.items()}


class Listener:
    """Hooks on a model and its optimizers from ``attach`` to ``detach``, over one training step or several.

    Args:
        model: The model, out of its wrappers.
        optimizers: Whose updates are counted.
        seen: Where what is heard goes.
        beside: Other modules than the model, by name, whose norms are listened to.
        on_error: Takes an exception in a hook, after which no more is heard; left out, it is raised in the user's pass.
    """

    def __init__(
        self,
        model: Module,
        optimizers: Sequence[Any],
        seen: Training,
        *,
        beside: Mapping[str, Module] | None = None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        self._beside = dict(beside or {})
        self._model, self._optimizers, self._seen, self._on_error = model, optimizers, seen, on_error
        self._forward, self._places = 0, Places()
        self._backward, self._graph = 0, -1
        self._handles: list[Any] = []
        self._open: dict[int, list[tuple[NormCall, list[Tensor]]]] = {}
        self._lead: tuple[int, ...] = ()
        self._logs: Counter[str] = Counter()
        self._failed = False
        self._sums = GradientSums(self._optimizers, self._note_sum, self._safe)

    def attach(self) -> None:
        """Set the hooks."""
        keep = self._handles.append
        keep(self._model.register_forward_pre_hook(Hook(self._safe(self._note_inputs)), with_kwargs=True))
        for path, module in self._model.named_modules():
            if isinstance(module, _BatchNorm):
                self._listen(path, module, self._seen.calls)
            if next(module.children(), None) is None:
                keep(module.register_forward_hook(Hook(self._safe(partial(self._log, path)))))
        for name, other in self._beside.items():
            for path, module in other.named_modules():
                if isinstance(module, _BatchNorm):
                    self._listen(f"{name}.{path}" if path else name, module, self._seen.beside)
        for optimizer in self._optimizers:
            if calls_step_hooks(optimizer):
                keep(optimizer.register_step_post_hook(self._note_update))
        self._sums.attach()

    def _listen(self, path: str, module: Module, calls: list[NormCall]) -> None:
        self._handles.append(module.register_forward_pre_hook(Hook(self._safe(partial(self._before, path, calls)))))
        self._handles.append(module.register_forward_hook(Hook(self._safe(partial(self._after, path)))))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._sums.detach()
        Hook.clear_copies()
        self._open.clear()

    def step_ended(self, loss: float = math.nan) -> None:
        """Count a training step."""
        self._seen.losses.append(loss)
        self._seen.call_logs.append(self._logs)
        self._logs = Counter()
        self._open.clear()
        self._places.begin_step()
        self._backward = 0
        self._seen.steps += 1

    def _safe(self, hook: Callable[..., None]) -> Callable[..., None]:
        if self._on_error is None:
            return hook
        told = self._on_error

        def safe(*args: Any) -> None:
            if self._failed:
                return
            try:
                hook(*args)
            except Exception as error:
                self._failed = True
                told(error)

        return safe

    def _note_update(self, *_: Any) -> None:
        self._seen.updates += 1

    def _note_sum(self, graph: int, number: int) -> None:
        self._seen.sums[graph] = self._seen.updates, number
        self._seen.sums_begun = number

    def _note_inputs(self, _module: Module, args: Any, kwargs: Any) -> None:
        self._forward += 1
        self._places.begin_pass()
        shapes = [leaf.shape for leaf in tensors((args, kwargs)) if leaf.ndim > 1]
        self._lead = tuple(shapes[0]) if shapes else ()
        if self._seen.inputs is None:
            self._seen.inputs = kept(args), kept(kwargs)

    def _log(self, path: str, _module: Module, inputs: Any, output: Any) -> None:
        self._logs[path] += 1
        if self._seen.broken is not None or finite(tensors(output)):
            return
        if finite(tensors(inputs)):
            self._seen.broken = (path, self._seen.steps)
        elif self._seen.batch_broken is None:  # no module has made it: it arose between them
            self._seen.broken = (f"the code before {path}", self._seen.steps)

    def _before(self, path: str, calls: list[NormCall], module: Any, inputs: Any) -> None:
        call = NormCall(
            path,
            self._seen.steps,
            self._seen.updates,
            len(calls),
            module.training,
            torch.is_grad_enabled(),
            torch._C._current_graph_task_id() != -1,
        )
        call.forward, call.place, call.backward = self._forward, self._places.next(path), self._backward
        x = leading_tensor(inputs)
        calls.append(call)
        if x is None or x.ndim < 2 or not x.numel():
            return
        with torch.no_grad():
            x = x.detach()
            call.dtype = x.dtype
            call.channels_last = x.ndim > 3 and x.stride(1) == 1 and x.shape[1] > 1
            seen = channels(x)
            call.samples, call.positions = x.shape[0], x[0, 0].numel()
            call.mean, call.variance = seen.mean.double(), seen.variance.double()
            call.finite = bool(torch.isfinite(call.mean).all() and torch.isfinite(call.variance).all())
            call.tail = max((tail_share(view) for view in as_sequences(x, self._lead)), default=0.0)
        # A list: a norm may be called again before its call returns, as by a checkpoint within it.
        self._open.setdefault(id(module), []).append((call, _buffers(module)))

    def _after(self, path: str, module: Any, _inputs: Any, output: Any) -> None:
        if not self._open.get(id(module)):
            return
        call, before = self._open[id(module)].pop()
        call.updated = not all(map(same_bits, before, _buffers(module)))
        if isinstance(output, Tensor) and output.requires_grad:
            back = partial(self._back, call, module, [] if call.training else _buffers(module))
            self._handles.append(output.register_hook(self._safe(back)))

    def _back(self, call: NormCall, module: Any, then: Sequence[Tensor], _gradient: Tensor) -> None:
        graph = torch._C._current_graph_task_id()
        if graph != self._graph:
            self._backward, self._graph = self._backward + 1, graph
        call.graph = graph
        if not call.training:
            call.stale = call.stale or not all(map(same_bits, then, _buffers(module)))


def _buffers(module: Any) -> list[Tensor]:
    found = (module._buffers.get(name) for name in ("running_mean", "running_var"))
    return [buffer.detach().clone() for buffer in found if buffer is not None]
