"""Lightning: a callback that watches what ``Trainer.fit`` trains."""

from collections.abc import Mapping
from inspect import signature
from typing import Any
from unittest.mock import DEFAULT, patch

from normscope.integrations import installed
from normscope.watching import WatchedTraining

_lightning = installed("lightning", "lightning.pytorch", "pytorch_lightning")
_Callback: Any = _lightning.Callback


class NormscopeCallback(WatchedTraining, _Callback):
    """Watches the training of a LightningModule, with the options of ``normscope.watch``; the scope is ``scope``.

    One step is one update: with gradient accumulation all its batches, with manual optimization all that
    ``training_step`` does until an optimizer has stepped. Costly probes evaluate ``training_step`` again, without its
    logging. Under manual optimization, and where it takes ``dataloader_iter``, they are not read without a
    ``loss_fn(module, batch)``, and ``scope.not_read`` says so. A training that is resumed goes on counting.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the scope."""
        taken = signature(pl_module.training_step).parameters
        repeats = pl_module.automatic_optimization and "dataloader_iter" not in taken
        scaler, loss_fn = getattr(trainer.precision_plugin, "scaler", None), loss_of_training_step if repeats else None
        self.start(trainer.model, trainer.optimizers, loss_fn=loss_fn, scaler=scaler, start=trainer.global_step)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin a step, or go on with it. Lightning divides by the same number where an epoch ends earlier."""
        self._updates = trainer.global_step
        self.begin(batch, 1 / trainer.accumulate_grad_batches if pl_module.automatic_optimization else None)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """End the step if an optimizer has stepped."""
        if trainer.global_step != self._updates:
            self.end()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Leave a step that has not come to its update."""
        self.end(StopIteration())

    on_exception = WatchedTraining.on_train_end  # leaves a step that is under way, too


def loss_of_training_step(module: Any, batch: Any) -> Any:
    """Return the loss of ``module.training_step``, in the trainer's precision; nothing that it logs is kept."""
    trainer = module.trainer
    loggers, index = trainer.loggers, trainer.fit_loop.epoch_loop.batch_idx
    trainer.loggers = [_lightning.loggers.logger.DummyLogger() for _ in loggers]
    try:
        with patch.multiple(module, log=DEFAULT, log_dict=DEFAULT), trainer.precision_plugin.train_step_context():
            output = module.training_step(*(batch, index)[: len(signature(module.training_step).parameters)])
    finally:
        trainer.loggers = loggers
    return output["loss"] if isinstance(output, Mapping) else output
