"""What the callbacks of trainers share: a scope from the start of a training to its end."""

from collections.abc import Callable
from typing import Any

from normscope.watching._scope import Scope


class WatchedTraining:
    """A scope for the callback of a trainer, made as a training starts and left as it ends, also where it ends early.

    A callback inherits from it before the trainer's own class, and says when a step begins and ends. Gradients are read
    as the backward pass ends, before the trainer clips them. Of a training that is taken up again the steps go on
    counting, by ``state_dict``.

    Args:
        **options: Options of ``normscope.watch``, which go before what the trainer tells.

    Attributes:
        options: As given.
        scope: The scope of the last training; None before.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.scope: Scope | None = None
        self._resumed: dict[str, Any] = {}
        self._removals: list[Callable[[], None]] = []

    def start(self, model: Any, optimizer: Any, **found: Any) -> None:
        """Make the scope, as a training starts.

        Args:
            model: The model, as the trainer calls it.
            optimizer: The optimizer or optimizers, also in the trainer's wrappers.
            **found: What the trainer tells of other options.
        """
        self.close()
        self.scope = Scope(model, optimizer=optimizer, **(found | self._resumed | self.options))

    def begin(self, batch: Any = None, share: float | None = 1.0) -> None:
        """Begin a step, or go on with the next batch of a step that accumulates gradients.

        Args:
            batch: What ``loss_fn`` takes; None where ``accumulate`` follows.
            share: Weight of the batch in the step's loss; with None the batches of a step have the same weight.
        """
        if self.scope is None:
            return
        if not self.scope.inside_step:
            self.scope.begin(batch)
        if share != 1:
            self.scope.micro_batch(batch, share)

    def accumulate(self, batch: Any, share: float | None) -> None:
        """Announce a batch right before its forward pass; outside a step, as in an evaluation, nothing happens."""
        if self.scope is not None and self.scope.inside_step:
            self.scope.micro_batch(batch, share)

    def end(self, error: BaseException | None = None) -> None:
        """End the step, if one was begun; with an error it is left, and does not count."""
        if self.scope is not None:
            self.scope.end(error)

    def until_closed(self, remove: Callable[[], None]) -> None:
        """Call ``remove()`` as the training ends."""
        self._removals.append(remove)

    def close(self) -> None:
        """Leave the model, also within a step, and write out what is pending."""
        while self._removals:
            self._removals.pop()()
        if self.scope is not None:
            self.scope.end(GeneratorExit())
            self.scope.close()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Write out what is pending."""
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps so far, for the checkpoint."""
        return {} if self.scope is None else {"steps": self.scope.index}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from a checkpoint."""
        self._resumed = {"start": state_dict["steps"]} if "steps" in state_dict else {}
