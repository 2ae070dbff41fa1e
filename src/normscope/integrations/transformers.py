"""Transformers: a callback that watches what ``Trainer.train`` trains."""

from typing import Any

from normscope.integrations import missing
from normscope.watching import Scope

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise missing("transformers") from error


class NormscopeCallback(TrainerCallback):
    """Watches the training of a ``transformers.Trainer``.

    One step is one update: with gradient accumulation all its batches. A batch is what the model's forward was called
    with, and costly probes evaluate ``model(**batch).loss`` again; give a ``loss_fn(model, batch)`` where the trainer
    computes another loss (``compute_loss_func``, ``label_smoothing_factor``). A training that is resumed from a
    checkpoint goes on counting. The trainer tells callbacks nothing of an exception: call ``close()`` where a training
    was interrupted and the model is used further without another ``train``.

    Args:
        **options: Options of ``normscope.watch``; ``loss_fn``, ``scaler`` and ``start`` are found if not given.

    Attributes:
        scope: The scope of the last training; None before.

    Example:
        >>> watching = NormscopeCallback(probes=["gradient", "smoothness"], every=50, record_to="runs/mine")
        >>> Trainer(model, args, train_dataset=data, callbacks=[watching]).train()
        >>> print(watching.scope.summary())
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.scope: Scope | None = None
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the scope."""
        self.close()
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        found: dict[str, Any] = {
            "loss_fn": model_loss,
            "scaler": getattr(optimizer, "scaler", None),
            "start": state.global_step,
        }
        self.scope = Scope(model, optimizer=optimizer, **(found | self.options))
        self._hook = model.register_forward_pre_hook(self._called, with_kwargs=True)

    def _called(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.scope is not None and self.scope.inside_step and model.training:
            # With this number a loss is its share of the update's; without, the trainer takes the mean.
            self.scope.micro_batch(dict(kwargs), 1.0 if "num_items_in_batch" in kwargs else None)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin a step."""
        if self.scope is not None:
            self.scope.begin()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """End the step, before the trainer clears the gradients."""
        if self.scope is not None:
            self.scope.end()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Write out what is pending."""
        self.close()

    def close(self) -> None:
        """Leave the model, also within a step that an exception has ended, and write out what is pending."""
        if self.scope is None or self._hook is None:
            return
        self._hook.remove()
        self._hook = None
        self.scope.end(GeneratorExit())
        self.scope.close()


def model_loss(model: Any, batch: dict[str, Any]) -> Any:
    """Return the loss that the model computes itself."""
    outputs = model(**batch)
    return outputs["loss"] if isinstance(outputs, dict) else outputs[0]
