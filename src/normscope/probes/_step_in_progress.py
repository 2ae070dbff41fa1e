"""A step that is under way: its probes if any are due, what else follows it, and its batches."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch.nn import Module
from torch.optim import Optimizer

from normscope.modules.autocast import without_autocast
from normscope.modules.hooks import call_new_hooks
from normscope.probes._forward_batch import ForwardBatches
from normscope.probes._probe import AbstractProbe
from normscope.probes._probed_step import ProbedStep
from normscope.probes._training_loop import TrainingLoop


class DiscardedPassError(Exception):
    """A forward and backward pass was made whose gradients no update has used."""


class StepObserver(Protocol):
    """Follows the steps of a recorder beside its probes. None of its methods may raise into the user's step."""

    def begin(self, index: int, batches: list[Any]) -> None:
        """Step ``index`` begins; the probes' own hooks are set. ``batches`` is empty where the batch follows."""

    def micro_batch(self, batch: Any) -> None:
        """The step accumulates gradients, or its batch was not known as it began: ``batch`` is the next of it."""

    def end(self, error: BaseException | None) -> None:
        """The user's part of the step is over, by an exception if ``error`` is given; no probe has read yet."""

    def read(self) -> None:
        """The step ended without exception, its probes have read, and their hooks are removed."""


class StepInProgress:
    """A step of the training loop, from its beginning to its end.

    Args:
        loop: The training loop.
        due: The probes that read at this step.
        batches: The batch of the step in a list; empty where it is what the model is called with.
        cell: Name under which the records are filed.
        index: Number of the step.
        observers: What else follows the step.
        restarts: Whether the step begins anew where a pass is thrown away: only where every update ends a step.

    Attributes:
        probed: The step as the probes see it; None if none is due.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        due: Sequence[AbstractProbe],
        batches: list[Any],
        cell: str,
        index: int,
        observers: Sequence[StepObserver],
        *,
        restarts: bool,
    ) -> None:
        self._loop, self._due, self._batches, self._cell, self._index = loop, due, batches, cell, index
        self._observers, self._restarts = observers, restarts
        self.probed: ProbedStep | None = None
        self._forward: ForwardBatches | None = None

    def begin(self) -> None:
        """Set the hooks. If that fails, none is left."""
        try:
            self._begin()
        except BaseException:
            self.give_up()
            raise

    def _begin(self) -> None:
        if self._due:
            self.probed = ProbedStep(self._loop, self._due, self._batches, self._cell, self._index)
            self.probed.begin()
        for observer in self._observers:
            observer.begin(self._index, self._batches)
        if not self._batches and (self.probed is not None or self._observers):
            restart = self._restart if self._restarts else None
            self._forward = ForwardBatches(self._loop.model, self._micro_batch, restart)
            self._forward.attach()

    def announce(self, batch: Any, share: float | None) -> None:
        """Take a batch that the loop announces; from then on the calls of the model are not heard."""
        if self._forward is not None:
            self._forward.detach()
            self._forward = None
        self._micro_batch(batch, share)

    def _micro_batch(self, batch: Any, share: float | None = None) -> None:
        for observer in self._observers:
            observer.micro_batch(batch)
        if self.probed is not None:
            self.probed.add_micro_batch(batch, share)

    def _restart(self, module: Module, args: Any, kwargs: Any) -> None:
        """Begin anew: the pass so far was thrown away, as a gradient scaler does with one that has overflowed."""
        known = set(module._forward_pre_hooks)
        self.give_up()
        for observer in self._observers:
            observer.end(DiscardedPassError())
        self.probed = self._forward = None
        self._begin()
        call_new_hooks(module, known, args, kwargs)

    def set_updating(self, updating: bool) -> None:
        """Note that an optimizer's ``step`` begins or has ended."""
        if self._forward is not None:
            self._forward.set_updating(updating)

    def adopt(self, optimizer: Optimizer) -> None:
        """Take up an optimizer as it makes its first update."""
        if self.probed is not None:
            self.probed.adopt(optimizer)

    def give_up(self) -> None:
        """Remove all hooks."""
        if self._forward is not None:
            self._forward.detach()
        if self.probed is not None:
            self.probed.end()

    def end(self, error: BaseException | None) -> None:
        """Remove all hooks and tell the observers that the user's part is over."""
        for observer in self._observers:
            observer.end(error)
        self.give_up()
        if self.probed is not None and self._forward is not None:
            self.probed.no_batch = self._forward.why_unknown()

    def let_observers_read(self) -> None:
        """Have the observers read; called after the probes."""
        for observer in self._observers:
            with without_autocast():
                observer.read()
