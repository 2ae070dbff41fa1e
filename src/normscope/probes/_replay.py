"""Evaluate the loss of a training step again, at any parameters, beside the model and not in it.

The parameters and buffers that the model computes with are exchanged for substitutes while a replay is open; the
user's own tensors, their gradients and their hooks are not touched. All substitutes of one kind lie in one flat
buffer, so that a walk along the gradient is one fused multiply-add.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules import module as torch_module

from normscope._errors import UsageError
from normscope.probes._sites import is_norm
from normscope.probes._state import HOOKS, RngState, Snapshot

LossFn = Callable[[Any, Any], Tensor]
Vector = list[Tensor]
"""One flat tensor for each kind (dtype, device) of trainable parameter."""

_ALIGN = 64  # bytes: each parameter begins at a cache line, as it would on its own


def dot(a: Vector, b: Vector) -> float:
    """Inner product of two vectors."""
    return sum(float(torch.dot(p, q)) for p, q in zip(a, b, strict=True))


def norm(a: Vector) -> float:
    """Euclidean length of a vector."""
    return sum(float(torch.linalg.vector_norm(p)) ** 2 for p in a) ** 0.5


def difference(a: Vector, b: Vector) -> Vector:
    """``a - b``."""
    return [p - q for p, q in zip(a, b, strict=True)]


@dataclass(eq=False, slots=True)
class Slot:
    """Where one parameter lies in the flat buffers.

    Attributes:
        name: Qualified name under which the parameter is first registered.
        parameter: The user's own parameter.
        places: Every module and attribute that holds it; more than one if the weight is shared.
        kind: Index of the flat buffer.
        at: First element in that buffer.
        trainable: Whether it required a gradient when the step began.
    """

    name: str
    parameter: Parameter
    places: list[tuple[Module, str]]
    kind: int
    at: int
    trainable: bool

    def padding(self) -> int:
        """Number of unused elements up to the next parameter."""
        return -self.parameter.numel() % _line(self.parameter)

    def of(self, flat: Sequence[Tensor]) -> Tensor:
        """View this parameter, in its own shape and memory layout, in flat buffers."""
        part = flat[self.kind][self.at : self.at + self.parameter.numel()]
        if self.parameter.is_contiguous():
            return part.view(self.parameter.shape)
        # A dense layout such as channels_last: the same strides over the same number of elements.
        return part.as_strided(self.parameter.shape, _dense_strides(self.parameter), part.storage_offset())


def _line(tensor: Tensor) -> int:
    return max(1, _ALIGN // tensor.element_size())


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    return torch.empty_like(tensor, device="meta").stride()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Loss, a scalar detached from its graph, and its gradient; the gradient is empty if none was asked for."""

    loss: Tensor
    gradient: Vector


class Start:
    """Parameters, buffers, random streams and modes as they are when a step begins.

    Cost: one copy of parameters and buffers.
    """

    def __init__(self, model: Module) -> None:
        self.rng = RngState(model)
        self.modes = [(module, module.training) for module in model.modules()]
        self.buffers: list[tuple[list[tuple[Module, str]], Tensor]] = []
        shared: dict[int, list[tuple[Module, str]]] = {}
        for module in model.modules():
            for key, buffer in module._buffers.items():
                if buffer is None:
                    continue
                if id(buffer) not in shared:
                    shared[id(buffer)] = []
                    self.buffers.append((shared[id(buffer)], buffer.detach().clone()))
                shared[id(buffer)].append((module, key))
        self.slots, sizes = self._lay_out(model)
        self.flat = [
            torch.zeros(size, dtype=dtype, device=device) for (dtype, device, trainable), size in sizes.items()
        ]
        self.trainable_kinds = [index for index, (_, _, trainable) in enumerate(sizes) if trainable]
        with torch.no_grad():
            for slot in self.slots:
                slot.of(self.flat).copy_(slot.parameter)

    @staticmethod
    def _lay_out(model: Module) -> tuple[list[Slot], dict[tuple[torch.dtype, torch.device, bool], int]]:
        slots: dict[int, Slot] = {}
        sizes: dict[tuple[torch.dtype, torch.device, bool], int] = {}
        for name, module in model.named_modules():
            for key, parameter in module._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in slots:
                    kind = (parameter.dtype, parameter.device, parameter.requires_grad)
                    at = sizes.setdefault(kind, 0)
                    sizes[kind] = at + parameter.numel() + -parameter.numel() % _line(parameter)
                    slots[id(parameter)] = Slot(
                        f"{name}.{key}".lstrip("."), parameter, [], list(sizes).index(kind), at, kind[2]
                    )
                slots[id(parameter)].places.append((module, key))
        return list(slots.values()), sizes

    def note_modes(self, model: Module) -> None:
        """Take the modes anew: called as the user's forward pass begins."""
        self.modes = [(module, module.training) for module in model.modules()]


class Replay:
    """The loss of one step as a function of the parameters.

    Every evaluation starts from the buffers and random streams as they were when the step began, in the modes of the
    user's own forward pass: dropout masks repeat, and batch norm in train mode normalizes by the statistics of this
    batch. Only inside ``opened()``; afterwards the model is bit for bit what it was.

    Args:
        model: The model, at its updated parameters.
        loss_fn: ``loss_fn(model, batch) -> scalar``.
        batch: The batch of the step, passed through as it is. A ``loss_fn`` that writes into it is read wrongly.
        start: Taken when the step began.
    """

    def __init__(self, model: Module, loss_fn: LossFn, batch: Any, start: Start) -> None:
        self.model, self.start = model, start
        self._loss_fn, self.batch = loss_fn, batch
        self.flat = [part.clone() for part in start.flat]
        self._leaves = [Parameter(slot.of(self.flat), requires_grad=slot.trainable) for slot in start.slots]
        self._origins: dict[str, Evaluation] = {}
        self._open = False
        self.mode = "train"
        self.cache: dict[str, Any] = {}
        # Found out at the first evaluation: where the loss draws from torch's streams only, the others need no setting.
        self.draws_beside_torch: bool | None = None

    @property
    def slots(self) -> list[Slot]:
        """The parameters, in the order of registration."""
        return self.start.slots

    @contextmanager
    def opened(self) -> Iterator["Replay"]:
        """Exchange parameters and buffers for substitutes, and silence hooks, until the block ends, however it ends."""
        snapshot = Snapshot(self.model)
        with _no_global_hooks(), torch.enable_grad():
            try:
                for module in self.model.modules():
                    _silence(module)
                for module, mode in self.start.modes:
                    module.training = mode
                self._install(self._leaves)
                self._open = True
                yield self
            finally:
                self._open = False
                self.cache.clear()
                snapshot.restore()

    def leaves(self) -> list[Parameter]:
        """Make further substitutes for the parameters, at the values with which the step began."""
        flat = [part.clone() for part in self.start.flat]
        return [Parameter(slot.of(flat), requires_grad=slot.trainable) for slot in self.slots]

    @contextmanager
    def substituted(self, leaves: Sequence[Parameter]) -> Iterator[None]:
        """Compute with these substitutes, one for each of ``slots``, until the block ends."""
        try:
            self._install(leaves)
            yield
        finally:
            self._install(self._leaves)

    def _install(self, leaves: Sequence[Parameter]) -> None:
        for slot, leaf in zip(self.slots, leaves, strict=True):
            for module, key in slot.places:
                module._parameters[key] = leaf

    @contextmanager
    def frozen(self, wanted: bool = True) -> Iterator[bool]:
        """Have the norms in train mode compute with their running statistics until the block ends.

        Everything else, such as dropout, stays in the mode of the user's own pass. Yields whether any norm changed.
        """
        norms = [module for module in self.model.modules() if wanted and module.training and _keeps_statistics(module)]
        before = self.mode
        try:
            for module in norms:
                module.training = False
            self.mode = "frozen" if norms else before
            yield bool(norms)
        finally:
            self.mode = before
            for module in norms:
                module.training = True

    @contextmanager
    def on(self, batch: Any) -> Iterator[None]:
        """Evaluate the loss on another batch until the block ends."""
        kept = self.batch, self._origins, self.cache
        self.batch, self._origins, self.cache = batch, {}, {}
        try:
            yield
        finally:
            self.batch, self._origins, self.cache = kept

    def reset(self) -> None:
        """Go back to the parameters with which the step began."""
        for part, start in zip(self.flat, self.start.flat, strict=True):
            part.copy_(start)

    def move(self, direction: Vector, s: float) -> None:
        """Go to ``theta - s * direction``, theta being the parameters with which the step began."""
        self.reset()
        for kind, along in zip(self.start.trainable_kinds, direction, strict=True):
            torch.add(self.start.flat[kind], along, alpha=-s, out=self.flat[kind])

    def advance(self, slots: Sequence[Slot]) -> None:
        """Give these parameters the values that they have after the user's update."""
        with torch.no_grad():
            for slot in slots:
                slot.of(self.flat).copy_(slot.parameter)

    def trainable(self, flat: Sequence[Tensor]) -> Vector:
        """Select the trainable part of flat buffers."""
        return [flat[kind] for kind in self.start.trainable_kinds]

    def origin(self) -> Evaluation:
        """Loss and gradient at the parameters with which the step began; computed once, shared by all probes."""
        if self.mode not in self._origins:
            self.reset()
            self._origins[self.mode] = self.evaluate()
        return self._origins[self.mode]

    def evaluate(self, wanted: Sequence[Slot] | None = None, *, gradient: bool = True) -> Evaluation:
        """Evaluate the loss where the walk stands.

        Args:
            wanted: Parameters with respect to which to differentiate; all trainable ones if None. With a selection the
                gradient is a list of one flat tensor per selected parameter, and only its part of the backward pass
                is run.
            gradient: Whether to differentiate at all.

        Raises:
            UsageError: ``loss_fn`` did not return a scalar tensor that depends on the parameters asked for.
        """
        asked = set(map(id, wanted if wanted is not None else self.slots)) if gradient else set()
        for slot, leaf in zip(self.slots, self._leaves, strict=True):
            leaf.requires_grad_(slot.trainable and id(slot) in asked)
        chosen = [(slot, leaf) for slot, leaf in zip(self.slots, self._leaves, strict=True) if leaf.requires_grad]
        loss = self.loss()
        if not gradient:
            return Evaluation(loss.detach(), [])
        if not loss.requires_grad:
            raise UsageError("loss_fn returned a loss that depends on no trainable parameter of the model")
        parts = torch.autograd.grad(loss, [leaf for _, leaf in chosen], allow_unused=True)
        if wanted is not None:
            flat = [_dense(part, leaf).reshape(-1) for part, (_, leaf) in zip(parts, chosen, strict=True)]
            return Evaluation(loss.detach(), flat)
        return Evaluation(loss.detach(), self.gather([slot for slot, _ in chosen], parts))

    def loss(self) -> Tensor:
        """Run ``loss_fn`` once, from the buffers and random streams with which the step began."""
        if not self._open:
            raise UsageError("a replay evaluates only while it is open")
        for places, value in self.start.buffers:
            substitute = value.clone()
            for module, key in places:
                module._buffers[key] = substitute
        self.start.rng.restore(beside_torch=self.draws_beside_torch is not False)
        loss = self._loss_fn(self.model, self.batch)
        if self.draws_beside_torch is None:
            self.draws_beside_torch = self.start.rng.drawn_beside_torch()
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise UsageError("loss_fn(model, batch) must return a scalar tensor")
        return loss.reshape(())

    def gather(self, slots: Sequence[Slot], parts: Sequence[Tensor | None]) -> Vector:
        """Join the gradients of all trainable parameters, in the layout of the flat buffers."""
        pieces: list[list[Tensor]] = [[] for _ in self.flat]
        for slot, part in zip(slots, parts, strict=True):
            dense = _dense(None if part is None else part.detach(), slot.parameter)
            if slot.parameter.is_contiguous():
                pieces[slot.kind].append(dense.reshape(-1))
            else:
                laid_out = torch.empty_like(slot.parameter).copy_(dense)
                pieces[slot.kind].append(laid_out.as_strided((dense.numel(),), (1,)))
            if rest := slot.padding():
                pieces[slot.kind].append(dense.new_zeros(rest))
        return [torch.cat(pieces[kind]) for kind in self.start.trainable_kinds]


def _dense(part: Tensor | None, like: Tensor) -> Tensor:
    if part is None:
        return torch.zeros_like(like)
    return part if part.layout == torch.strided else part.to_dense()


def _keeps_statistics(module: Module) -> bool:
    buffers = module._buffers.values()
    return is_norm(module) and any(buffer is not None and buffer.is_floating_point() for buffer in buffers)


def _silence(module: Module) -> None:
    """Take the hooks off, but for those by which torch itself computes weights (weight and spectral norm, pruning)."""
    for kind in HOOKS:
        hooks = vars(module).get(kind)
        if hooks:
            vars(module)[kind] = OrderedDict((key, hook) for key, hook in hooks.items() if _computes_weight(hook))


def _computes_weight(hook: Any) -> bool:
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return str(home).startswith("torch.nn.utils.")


@contextmanager
def _no_global_hooks() -> Iterator[None]:
    kinds = [name for name in vars(torch_module) if name.startswith("_global_") and name.endswith("_hooks")]
    kept = {name: getattr(torch_module, name) for name in kinds}
    try:
        for name in kinds:
            setattr(torch_module, name, OrderedDict())
        yield
    finally:
        for name, hooks in kept.items():
            setattr(torch_module, name, hooks)
