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
from normscope.probes._own_pass import OwnPass
from normscope.probes._start import Slot as Slot, Start as Start, copy_all
from normscope.probes._state import HOOKS, RngState, Snapshot

LossFn = Callable[[Any, Any], Tensor]
Vector = list[Tensor]
"""One flat tensor for each kind (dtype, device) of trainable parameter."""


def dot(a: Vector, b: Vector) -> float:
    """Inner product of two vectors."""
    return sum(float(torch.dot(p, q)) for p, q in zip(a, b, strict=True))


def norm(a: Vector) -> float:
    """Euclidean length of a vector."""
    return sum(float(torch.linalg.vector_norm(p)) ** 2 for p in a) ** 0.5


def difference(a: Vector, b: Vector) -> Vector:
    """``a - b``."""
    return [p - q for p, q in zip(a, b, strict=True)]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Loss, a scalar detached from its graph, and its gradient; the gradient is empty if none was asked for."""

    loss: Tensor
    gradient: Vector


@dataclass(frozen=True, slots=True)
class Piece:
    """One of the batches that a step accumulates: its share in the loss, and the random streams at its beginning."""

    batch: Any
    share: float
    rng: RngState


class Replay:
    """The loss of one step as a function of the parameters.

    Every evaluation starts from the buffers and random streams as they were when the step began, in the modes of the
    user's own forward pass: dropout masks repeat, and batch norm in train mode normalizes by the statistics of this
    batch. Only inside ``opened()``; afterwards the model is bit for bit what it was.

    Args:
        model: The model, at its updated parameters.
        loss_fn: ``loss_fn(model, batch) -> scalar``.
        batch: The batch of the step, passed through as it is. A ``loss_fn`` that writes into it is read wrongly. A list
            of ``Piece`` if the step accumulates: then the loss is their weighted sum.
        start: Taken when the step began.
        own: The user's own pass, to be used where it is proven to be the origin.
        scale: Loss scale for backward passes; gradients are handed out unscaled.
    """

    def __init__(
        self,
        model: Module,
        loss_fn: LossFn,
        batch: Any,
        start: Start,
        *,
        own: OwnPass | None = None,
        scale: float = 1.0,
    ) -> None:
        self.model, self.start = model, start
        self._own, self._scale = own, scale
        self._loss_fn, self._batch = loss_fn, batch
        self.flat = [part.clone() for part in start.flat]
        self._leaves = [
            Parameter(view, requires_grad=slot.trainable)
            for slot, view in zip(start.slots, start.layout.views(self.flat), strict=True)
        ]
        self._origin: Evaluation | None = None
        self._open = False
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
                for module in self.start.layout.modules:
                    _silence(module)
                for module, mode in self.start.modes:
                    module.training = mode
                for slot, leaf in zip(self.slots, self._leaves, strict=True):
                    for module, key in slot.places:
                        module._parameters[key] = leaf
                self._open = True
                yield self
            finally:
                self._open = False
                snapshot.restore()

    def reset(self) -> None:
        """Go back to the parameters with which the step began."""
        for part, start in zip(self.flat, self.start.flat, strict=True):
            part.copy_(start)

    def move(self, direction: Vector, s: float) -> None:
        """Go to ``theta - s * direction``, theta being the parameters with which the step began."""
        along = dict(zip(self.start.trainable_kinds, direction, strict=True))
        for kind, (part, start) in enumerate(zip(self.flat, self.start.flat, strict=True)):
            if kind in along:
                torch.add(start, along[kind], alpha=-s, out=part)
            else:
                part.copy_(start)

    def advance(self, slots: Sequence[Slot]) -> None:
        """Give these parameters the values that they have after the user's update."""
        wanted = set(map(id, slots))
        pairs = [
            (leaf, slot.parameter) for slot, leaf in zip(self.slots, self._leaves, strict=True) if id(slot) in wanted
        ]
        copy_all([leaf for leaf, _ in pairs], [parameter for _, parameter in pairs])

    def trainable(self, flat: Sequence[Tensor]) -> Vector:
        """Select the trainable part of flat buffers."""
        return [flat[kind] for kind in self.start.trainable_kinds]

    def origin(self) -> Evaluation:
        """Loss and gradient at the parameters with which the step began; computed once, shared by all probes."""
        if self._origin is None:
            self.reset()
            self._origin = self.evaluate() if self._own is None else self._own.origin(self)
        return self._origin

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
        found: Evaluation | None = None
        for loss in self._losses():  # one graph at a time
            part = Evaluation(loss.detach(), self._gradient(loss, chosen, wanted is None) if gradient else [])
            found = part if found is None else _added(found, part)
        assert found is not None
        return found

    def _gradient(self, loss: Tensor, chosen: Sequence[tuple[Slot, Parameter]], whole: bool) -> Vector:
        if not loss.requires_grad:
            raise UsageError("loss_fn returned a loss that depends on no trainable parameter of the model")
        scaled = loss if self._scale == 1 else loss * self._scale
        parts = torch.autograd.grad(scaled, [leaf for _, leaf in chosen], allow_unused=True)
        if whole:
            flat = self._gather([slot for slot, _ in chosen], parts)
        else:
            flat = [_dense(part, leaf).reshape(-1) for part, (_, leaf) in zip(parts, chosen, strict=True)]
        return flat if self._scale == 1 else [part * (1 / self._scale) for part in flat]

    def loss(self) -> Tensor:
        """Run ``loss_fn`` once, from the buffers and random streams with which the step began."""
        losses = list(self._losses())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _losses(self) -> Iterator[Tensor]:
        """Yield the loss, or each piece's share of it one after the other."""
        if not self._open:
            raise UsageError("a replay evaluates only while it is open")
        for places, value in self.start.buffers:
            substitute = value.clone()
            for module, key in places:
                module._buffers[key] = substitute
        pieces = self._batch if _is_pieces(self._batch) else [Piece(self._batch, 1.0, self.start.rng)]
        for piece in pieces:
            piece.rng.restore(beside_torch=self.draws_beside_torch is not False)
            with self.start.autocasting():
                loss = self._loss_fn(self.model, piece.batch)
            if self.draws_beside_torch is None:
                self.draws_beside_torch = piece.rng.drawn_beside_torch()
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise UsageError("loss_fn(model, batch) must return a scalar tensor")
            yield loss.reshape(()) if piece.share == 1 else loss.reshape(()) * piece.share

    def hessian_product(self, direction: Vector) -> Vector:
        """Multiply the Hessian at the start of the step by ``direction``, exactly, by a double backward pass.

        Where an operation has no second derivative (some fused attention and recurrent kernels), the central
        difference of gradients at ``theta +- h direction`` is taken, ``h = eps^(1/3) |theta| / |direction|``.
        """
        self.reset()
        trainable = [slot for slot in self.slots if slot.trainable]
        leaves = [leaf for slot, leaf in zip(self.slots, self._leaves, strict=True) if slot.trainable]
        for slot, leaf in zip(self.slots, self._leaves, strict=True):
            leaf.requires_grad_(slot.trainable)
        loss = self.loss()
        whole = [torch.empty(0)] * len(self.flat)
        for kind, along in zip(self.start.trainable_kinds, direction, strict=True):
            whole[kind] = along
        try:
            parts = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
            along_gradient = [
                (part * slot.of(whole)).sum()
                for part, slot in zip(parts, trainable, strict=True)
                if part is not None and part.requires_grad
            ]
            if not along_gradient:  # the loss is linear in the parameters
                return [torch.zeros_like(part) for part in direction]
            total = torch.stack([part.to(along_gradient[0]) for part in along_gradient]).sum()
            if _refuses(total):
                return self._central_product(direction)
            return self._gather(trainable, torch.autograd.grad(total, leaves, allow_unused=True))
        except RuntimeError:
            return self._central_product(direction)

    def _central_product(self, direction: Vector) -> Vector:
        eps = max(torch.finfo(part.dtype).eps for part in direction)
        h = eps ** (1 / 3) * norm(self.trainable(self.start.flat)) / max(norm(direction), 1e-300)
        self.move(direction, -h)
        ahead = self.evaluate().gradient
        self.move(direction, h)
        behind = self.evaluate().gradient
        self.reset()
        return [part / (2 * h) for part in difference(ahead, behind)]

    def _gather(self, slots: Sequence[Slot], parts: Sequence[Tensor | None]) -> Vector:
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


def _is_pieces(batch: Any) -> bool:
    return isinstance(batch, list) and bool(batch) and all(isinstance(one, Piece) for one in batch)


def _added(a: Evaluation, b: Evaluation) -> Evaluation:
    return Evaluation(a.loss + b.loss, [p + q for p, q in zip(a.gradient, b.gradient, strict=True)])


def _dense(part: Tensor | None, like: Tensor) -> Tensor:
    if part is None:
        return torch.zeros_like(like)
    return part if part.layout == torch.strided else part.to_dense()


def _refuses(value: Tensor) -> bool:
    """Whether a function that is differentiable only once took part: torch would take its part as zero and not say."""
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ in ("Error", "NotImplemented"):
            return True
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    return False


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
