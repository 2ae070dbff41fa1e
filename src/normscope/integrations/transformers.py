"""Transformers: a callback that watches what ``Trainer.train`` trains."""

from typing import Any

from normscope.integrations import installed
from normscope.watching import WatchedTraining

_TrainerCallback: Any = installed("transformers", "transformers").TrainerCallback


class NormscopeCallback(WatchedTraining, _TrainerCallback):
    """Watches the training of a ``transformers.Trainer``, with the options of ``normscope.watch``.

    One step is one update: with gradient accumulation all its batches. A batch is what the model's forward was called
    with, and costly probes evaluate ``model(**batch).loss`` again; give a ``loss_fn(model, batch)`` where the trainer
    computes another loss (``compute_loss_func``, ``label_smoothing_factor``). A training that is resumed from a
    checkpoint goes on counting. The trainer tells callbacks nothing of an exception: call ``close()`` where a training
    was interrupted and the model is used further without another ``train``. The scope is ``scope``.

    Example:
        >>> watching = NormscopeCallback(probes=["gradient", "smoothness"], every=50, record_to="runs/mine")
        >>> Trainer(model, args, train_dataset=data, callbacks=[watching]).train()
        >>> print(watching.scope.summary())
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the scope."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        scaler = getattr(optimizer, "scaler", None)
        self.start(model, optimizer, loss_fn=model_loss, scaler=scaler, start=state.global_step)
        self.until_closed(model.register_forward_pre_hook(self._called, with_kwargs=True).remove)

    def _called(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training:
            # With this number a loss is its share of the update's; without, the trainer takes the mean.
            self.accumulate(dict(kwargs), 1.0 if "num_items_in_batch" in kwargs else None)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin a step."""
        self.begin()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """End the step, before the trainer clears the gradients."""
        self.end()


def model_loss(model: Any, batch: dict[str, Any]) -> Any:
    """Return the loss that the model computes itself."""
    outputs = model(**batch)
    return outputs["loss"] if isinstance(outputs, dict) else outputs[0]
