"""Evaluate the loss of a training step again, at arbitrary parameter values.

While a replay is open, the model computes with substitutes for its parameters and buffers; the user's own tensors,
their gradients and their hooks stay untouched. All substitutes of one kind lie in one flat buffer, so that a walk along
the gradient is one fused multiply-add.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from normscope._errors import UsageError
from normscope.modules.batches import Piece, is_pieces
from normscope.modules.call import modes_kept
from normscope.modules.hooks import no_global_hooks, silence
from normscope.modules.processes import Processes, refusing_exchanges
from normscope.modules.reach import Reach
from normscope.modules.reaching import ReachingSnapshot
from normscope.modules.rng import RngState
from normscope.modules.sites import normalizes
from normscope.probes._start_state import Slot, StartState, copy_all, dense
from normscope.probes._vectors import Evaluation, Vector

LossFn = Callable[[Any, Any], Tensor]
"""``loss_fn(model, batch) -> scalar``."""


class OriginSource(Protocol):
    """Who may know the loss and the gradient with which a step begins without a pass of the replay's own."""

    def origin(self, replay: "Replay") -> Evaluation:
        """Return loss and gradient at the parameters with which the step began."""


class Replay:
    """The loss of one step as a function of the parameters.

    Every evaluation starts from the buffers and random streams as they were when the step began, in the modes of the
    user's own forward pass: dropout masks repeat, and batch norm in train mode normalizes by the statistics of this
    batch. Evaluations are possible only inside ``opened()``; afterwards the model is bit for bit what it was.

    Args:
        model: The model, at its updated parameters.
        loss_fn: ``loss_fn(model, batch) -> scalar``.
        batch: The batch of the step, handed to ``loss_fn`` as it is. If ``loss_fn`` writes into it, later evaluations
            see what was written. If the step accumulates, a list of ``Piece``: the loss is their weighted sum.
        start: The state with which the step began; the present one if None.
        origin_source: The user's own pass, if it may serve as the evaluation at the start.
        scale: Loss scale for backward passes; gradients are returned without it.
        processes: See below.

    Attributes:
        model: As given.
        batch: As given.
        start: The state with which the step began.
        scale: As given.
        flat: The parameters at which the loss is evaluated, in flat buffers.
        processes: Those that must run the same passes, as the model exchanges statistics with them; None if it does
            not. Loss and gradient are then the means over them, alike in each.
        mode: ``"frozen"`` while norms compute with their running statistics, else ``"train"``.
        cache: What probes share until the replay closes.
    """

    def __init__(
        self,
        model: Module,
        loss_fn: LossFn,
        batch: Any,
        start: StartState | None = None,
        *,
        origin_source: OriginSource | None = None,
        scale: float = 1.0,
        processes: Processes | None = None,
    ) -> None:
        self.model, self.processes = model, processes
        self.start = start = start if start is not None else StartState(model, reach=Reach({"loss_fn": loss_fn}))
        # The user's own gradient is of this process's share alone until it is averaged.
        self._origin_source, self.scale = origin_source if processes is None else None, scale
        self._loss_fn, self.batch = loss_fn, batch
        self.flat = [part.clone() for part in start.flat]
        self._leaves = [
            Parameter(view, requires_grad=slot.trainable)
            for slot, view in zip(start.slots, start.layout.views(self.flat), strict=True)
        ]
        self._origins: dict[str, Evaluation] = {}
        self._open = False
        self.mode = "train"
        self.cache: dict[str, Any] = {}
        # Known after the first evaluation. If the loss draws from torch's streams only, the others need no restoring.
        self.draws_beside_torch: bool | None = None

    @property
    def slots(self) -> list[Slot]:
        """The parameters, in the order of registration."""
        return self.start.slots

    @contextmanager
    def opened(self) -> Iterator["Replay"]:
        """Exchange parameters and buffers for substitutes, and silence hooks, until the block ends, however it ends.

        Put back is also what ``loss_fn`` reaches beside the model; ``start.reach.left`` names what could not be.
        """
        snapshot = ReachingSnapshot(self.start.reach, self.model)
        with no_global_hooks(), snapshot.noting(), torch.enable_grad():
            try:
                for module in self.start.layout.modules:
                    silence(module)
                self.start.conditions.set_modes()
                self._install(self._leaves)
                self._open = True
                yield self
            finally:
                self._open = False
                self.cache.clear()
                snapshot.restore()
                if self.draws_beside_torch is not None:  # the loss was evaluated
                    snapshot.note_left(learn=True)

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
        with modes_kept(norms):
            try:
                for module in norms:
                    module.training = False
                self.mode = "frozen" if norms else before
                yield bool(norms)
            finally:
                self.mode = before

    def with_batch(self, batch: Any, rng: RngState | None = None) -> "Replay":
        """Return an open replay of the same model and start on another batch.

        It shares the parameter substitutes of this one, and can be used as long as this one is open.

        Args:
            batch: What ``loss_fn`` takes.
            rng: The random streams to begin from; those of the step if None.
        """
        other = copy.copy(self)
        other.batch, other._origin_source, other._origins, other.cache = batch, None, {}, {}
        other.draws_beside_torch = None
        if rng is not None:
            other.start = copy.copy(self.start)
            other.start.rng = rng
        return other

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
        if self.mode not in self._origins:
            self.reset()
            source = self._origin_source if self.mode == "train" else None
            self._origins[self.mode] = self.evaluate() if source is None else source.origin(self)
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
        total: Evaluation | None = None
        for loss in self._losses():  # one graph at a time
            piece = Evaluation(loss.detach(), self._gradient(loss, chosen, wanted is None) if gradient else [])
            total = piece if total is None else _added(total, piece)
        assert total is not None
        return self._over_processes(total)

    def _over_processes(self, own: Evaluation) -> Evaluation:
        if self.processes is None:
            return own
        loss, *gradient = self.processes.mean([own.loss, *own.gradient])
        return Evaluation(loss, gradient)

    def _gradient(self, loss: Tensor, chosen: Sequence[tuple[Slot, Parameter]], whole: bool) -> Vector:
        if not loss.requires_grad:
            raise UsageError("loss_fn returned a loss that depends on no trainable parameter of the model")
        scaled = loss if self.scale == 1 else loss * self.scale
        parts = torch.autograd.grad(scaled, [leaf for _, leaf in chosen], allow_unused=True)
        if whole:
            flat = self.start.gather([slot for slot, _ in chosen], parts)
        else:
            flat = [dense(part, leaf).reshape(-1) for part, (_, leaf) in zip(parts, chosen, strict=True)]
        return flat if self.scale == 1 else [part * (1 / self.scale) for part in flat]

    def loss(self) -> Tensor:
        """Run ``loss_fn`` once, from the buffers and random streams with which the step began."""
        losses = list(self._losses())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _losses(self) -> Iterator[Tensor]:
        """Yield the loss, or each piece's share of it one after the other."""
        if not self._open:
            raise UsageError("a replay evaluates only while it is open")
        pieces = self.batch if is_pieces(self.batch) else [Piece(self.batch, 1.0, self.start.rng)]
        if self.processes is not None:
            self.processes.begin_pass()
        self.start.conditions.settle(lambda: self._loss_fn(self.model, pieces[0].batch))
        self._rewind()
        for piece in pieces:
            piece.rng.restore(beside_torch=self.draws_beside_torch is not False)
            with self.start.conditions.repeated(), self._by_itself():
                loss = self._loss_fn(self.model, piece.batch)
            if self.draws_beside_torch is None:
                self.draws_beside_torch = piece.rng.drawn_beside_torch()
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise UsageError("loss_fn(model, batch) must return a scalar tensor")
            if self.processes is not None:  # the pass back is to come, or the next piece
                self.processes.begin_pass()
            yield loss.reshape(()) if piece.share == 1 else loss.reshape(()) * piece.share

    def _by_itself(self) -> AbstractContextManager[Any]:
        """Refuse a loss that waits for other processes, as it is evaluated again for the first time."""
        known = self.start.reach.compared or self.draws_beside_torch is not None
        return nullcontext() if known or self.processes is not None else refusing_exchanges()

    def _rewind(self) -> None:
        """Put buffers, and what the loss reaches beside the model, into the state with which the step began."""
        self.start.beside.rewind()
        for places, value in self.start.buffers:
            substitute = value.clone()
            for module, key in places:
                module._buffers[key] = substitute


def _added(a: Evaluation, b: Evaluation) -> Evaluation:
    return Evaluation(a.loss + b.loss, [p + q for p, q in zip(a.gradient, b.gradient, strict=True)])


def _keeps_statistics(module: Module) -> bool:
    buffers = module._buffers.values()
    return normalizes(module) and any(buffer is not None and buffer.is_floating_point() for buffer in buffers)
