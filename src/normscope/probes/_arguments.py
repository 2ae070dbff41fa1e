"""What a recorder is given: checked, and the place of its records opened."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

from torch.nn import Module
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.modules.wrapped import rank_of_many, refuse_fixed, unwrap_optimizer, world_size
from normscope.probes._sinks import RecordSink
from normscope.records import Store
from normscope.records.cell_names import claim_cell, last_step, require_cell_name, take_up_cell


def optimizers_of(given: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    """Return one optimizer, several or none as a list.

    Raises:
        UsageError: One of them is no optimizer.
    """
    optimizers: list[Any] = [given] if hasattr(given, "param_groups") else list(given or ())
    if not all(hasattr(optimizer, "param_groups") for optimizer in optimizers):
        raise UsageError("optimizer must be a torch optimizer or a sequence of them")
    return [unwrap_optimizer(optimizer) for optimizer in optimizers]


def check_arguments(model: Any, loss_fn: Any, every: Any, start: Any, scaler_alone: bool) -> None:
    """Refuse what no recorder can be made of.

    Raises:
        UsageError: As of ``Recorder``.
    """
    if not isinstance(every, int) or every < 1:
        raise UsageError(f"every={every} must be a whole number of steps, 1 or more")
    if not isinstance(model, Module):
        raise UsageError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    refuse_fixed(model)
    if hasattr(loss_fn, "param_groups"):
        raise UsageError(
            f"loss_fn is an optimizer ({type(loss_fn).__name__}): write ns.watch(model, optimizer, loss_fn), or "
            "ns.Scope(model, loss_fn, optimizer)"
        )
    if loss_fn is not None and not callable(loss_fn):
        raise UsageError(f"loss_fn must be a function loss_fn(model, batch) -> scalar, not {type(loss_fn).__name__}")
    if scaler_alone:
        raise UsageError("with a gradient scaler the scope needs the optimizer too")
    if start != "continue" and (isinstance(start, bool) or not isinstance(start, int) or start < 0):
        raise UsageError(f'start={start!r} must be the number of a step, 0 or more, or "continue"')


def open_cell(
    record_to: "str | PathLike[str] | RecordSink | None", name: str, start: int | str, facts: dict[str, Any]
) -> tuple[RecordSink | None, str, int]:
    """Return where records go, the name of the cell, and the number of the first step."""
    require_cell_name(name)
    rank = rank_of_many()
    if record_to is None or not isinstance(record_to, (str, PathLike)):
        if start == "continue":
            raise UsageError('start="continue" needs record_to, the folder of the run that is continued')
        return record_to, name if rank is None else f"{name}.rank{rank}", int(start)
    store = Store.create(record_to, {"kind": "scope"})
    if start == "continue":
        cell = take_up_cell(store.path, name, rank)
        if cell is not None:
            last = last_step(store.path, cell)
            return store, cell, 0 if last is None else last + 1
        start = 0
    return store, claim_cell(store.path, name, rank, ranks=world_size(), facts=facts), int(start)
