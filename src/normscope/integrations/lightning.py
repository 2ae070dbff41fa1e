"""Lightning: a callback that watches what ``Trainer.fit`` trains."""

from collections.abc import Mapping
from inspect import signature
from typing import Any
from unittest.mock import patch

from normscope.integrations import missing
from normscope.watching import Scope

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers.logger import DummyLogger
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback
        from pytorch_lightning.loggers.logger import DummyLogger
    except ModuleNotFoundError as error:
        raise missing("lightning") from error


class NormscopeCallback(Callback):
    """Watches the training of a LightningModule, from the start of ``fit`` to its end, also an early end.

    One step is one update: with gradient accumulation all its batches, with manual optimization all that
    ``training_step`` does until an optimizer has stepped. Costly probes evaluate the module's own ``training_step``
    again, without its logging. With manual optimization, or a ``training_step`` that takes ``dataloader_iter``, this
    cannot be done: without a ``loss_fn(module, batch)`` such probes are not read, and ``scope.not_read`` says so. A
    training that is resumed from a checkpoint goes on counting.

    Args:
        **options: Options of ``normscope.watch``; ``loss_fn``, ``scaler`` and ``start`` are found if not given.

    Attributes:
        scope: The scope of the last training; None before.

    Example:
        >>> watching = NormscopeCallback(probes=["gradient", "smoothness"], every=50, record_to="runs/mine")
        >>> Trainer(callbacks=[watching]).fit(module)
        >>> print(watching.scope.summary())
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.scope: Scope | None = None
        self._resumed: int | None = None
        self._updates: int | None = None  # of the trainer, as the step began; None between steps

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the scope."""
        repeats = pl_module.automatic_optimization and "dataloader_iter" not in _taken(pl_module)
        found: dict[str, Any] = {
            "loss_fn": loss_of_training_step if repeats else None,
            "scaler": getattr(trainer.precision_plugin, "scaler", None),
            "start": trainer.global_step if self._resumed is None else self._resumed,
        }
        self.scope = Scope(trainer.model, optimizer=trainer.optimizers, **(found | self.options))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin a step, or go on with the next batch of a step that accumulates gradients."""
        assert self.scope is not None
        if self._updates is None:
            self.scope.begin(batch)
            self._updates = trainer.global_step
        if not pl_module.automatic_optimization:
            self.scope.micro_batch(batch)
        elif trainer.accumulate_grad_batches > 1:  # by which Lightning divides, also where an epoch ends earlier
            self.scope.micro_batch(batch, 1 / trainer.accumulate_grad_batches)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """End the step if an optimizer has stepped."""
        if trainer.global_step != self._updates:
            self._end()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave a step that has not come to its update."""
        self._end(StopIteration())

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the step, and write out what is pending."""
        self._end(exception)
        self.on_train_end()

    def on_train_end(self, *_: Any) -> None:
        """Write out what is pending."""
        if self.scope is not None:
            self.scope.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps so far, for the checkpoint."""
        return {} if self.scope is None else {"steps": self.scope.index}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from a checkpoint."""
        self._resumed = state_dict.get("steps")

    def _end(self, error: BaseException | None = None) -> None:
        if self.scope is not None and self._updates is not None:
            self._updates = None
            self.scope.end(error)


def loss_of_training_step(module: Any, batch: Any) -> Any:
    """Return the loss of ``module.training_step``, in the trainer's precision; nothing that it logs is kept."""
    trainer = module.trainer
    loggers, index = trainer.loggers, trainer.fit_loop.epoch_loop.batch_idx
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        with patch.multiple(module, log=_nothing, log_dict=_nothing), trainer.precision_plugin.train_step_context():
            output = module.training_step(*(batch, index)[: len(_taken(module))])
    finally:
        trainer.loggers = loggers
    return output["loss"] if isinstance(output, Mapping) else output


def _taken(module: Any) -> Mapping[str, Any]:
    return signature(module.training_step).parameters


def _nothing(*_: Any, **__: Any) -> None:
    """Log nothing."""
