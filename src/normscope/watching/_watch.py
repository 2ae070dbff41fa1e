"""A training loop is watched in one line."""

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from normscope.probes import LossFn, RecordSink, Sink, Wanted
from normscope.watching._scope import Scope

if TYPE_CHECKING:
    from torch.amp import GradScaler
    from torch.nn import Module
    from torch.optim import Optimizer


def watch(
    model: "Module",
    optimizer: "Optimizer | Sequence[Optimizer] | None" = None,
    loss_fn: LossFn | None = None,
    *,
    probes: Wanted | None = None,
    rules: str | Sequence[str] | None = None,
    every: int = 50,
    record_to: "str | PathLike[str] | RecordSink | None" = None,
    cell: str = "scope",
    scaler: "GradScaler | None" = None,
    also: Sequence[Any] = (),
    start: int | str = 0,
    sinks: Sequence[Sink] = (),
) -> Scope:
    """Watch a training loop in one line; the loop stays as it is, also if it is a trainer's.

    A step begins at the first forward pass that records gradients after the last update, and ends when the optimizer
    has stepped: every optimizer that was given, or one of them for the second time. Forward passes that record no
    gradients, and those of a model in eval mode once it has trained in train mode, are passed over. Batches that the
    optimizer accumulates are taken one by one.

    Args:
        model: As of ``Scope``.
        optimizer: The optimizer or optimizers, also wrapped as Accelerate and Lightning wrap theirs. Without, each
            optimizer that makes an update and holds parameters of the model is taken up.
        loss_fn: ``loss_fn(model, batch) -> scalar``, for the costly probes; they are not read without it. The batch is
            what the model's own forward was called with: its one argument, the mapping of its keywords, or the tuple of
            its arguments.
        probes: As of ``Scope``; so are the options that follow.
        rules: Likewise.
        every: Likewise.
        record_to: Likewise.
        cell: Likewise.
        scaler: Likewise.
        also: Likewise.
        start: Likewise.
        sinks: Likewise.

    Returns:
        The scope, attached. ``scope.detach()`` takes its hooks off; used as a context it is detached and closed at the
        end of the block.

    Raises:
        UsageError: As of ``Scope``.
        StoreError: Likewise.

    Example:
        >>> scope = ns.watch(model, optimizer)
        >>> train()
        >>> print(scope.summary())
    """
    options: dict[str, Any] = {"every": every, "record_to": record_to, "cell": cell, "scaler": scaler}
    options |= {"also": also, "start": start, "sinks": sinks, "rules": rules}
    return Scope(model, loss_fn, optimizer, probes, **options).attach()
