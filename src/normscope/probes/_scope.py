"""The scope: attach probes to any training loop."""

import warnings
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

from torch.nn import Module
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.modules.wrapped import rank_of_many
from normscope.probes._probe import AbstractProbe
from normscope.probes._replay import LossFn
from normscope.probes._start import Layout
from normscope.probes._step_guard import StepGuard
from normscope.records import MemoryStore, Record, Store

if TYPE_CHECKING:
    import polars
    from torch.amp import GradScaler


class ProbeWarning(UserWarning):
    """A probe failed and is switched off; training goes on."""


class RecordSink(Protocol):
    """What a scope writes to."""

    def append(self, records: Iterable[Record]) -> None:
        """Take records."""

    def flush(self) -> None:
        """Write out what was taken."""

    def frame(self) -> "polars.DataFrame":
        """Return all records."""


class Companion(Protocol):
    """What else looks on at the steps of a scope. Whatever it meets, it raises nothing into the user's step."""

    def begin(self, index: int, batch: Any) -> None:
        """Take that a step begins; the probes' own hooks are set."""

    def micro_batch(self, batch: Any) -> None:
        """Take one of several batches of this step."""

    def end(self, error: BaseException | None) -> None:
        """Take that the user's part of the step is over; nothing is read yet."""

    def read(self) -> None:
        """Measure; the probes have read, and no hook of theirs is left."""


class Scope:
    """Reads probes at the scheduled steps of a training loop, and leaves no trace in it.

    Training with a scope attached is bit-identical to training without. Steps that are not due cost a comparison.
    A probe that fails is reported once by a ``ProbeWarning`` with its name and switched off.

    How it meets a loop's machinery:

    - *Several losses*: ``loss_fn`` returns their sum. Modules' output gradients are read per backward pass.
    - *Gradient accumulation*: call ``scope.micro_batch(batch)`` before each forward pass; the loss of the step is then
      the mean of the micro-batches', and costly probes evaluate it over all of them.
    - *Mixed precision*: costly probes repeat the autocast that the model's own forward pass ran under. Give a
      gradient scaler as ``scaler``: gradients are read without its scale.
    - *Compiled models* (``torch.compile``): what is compiled stays as it is. Probes that listen to modules hear one
      eager pass of ``loss_fn`` instead, at the same parameters, buffers and random streams: one plain step more at
      due steps, shared with the costly probes, and rounding as of eager code.
    - *Several processes* (``DistributedDataParallel``): each process records its own batch as a cell of its own,
      ``CELL.rank0``, ``CELL.rank1``, ..., into the same run folder; they exchange nothing. Make the scope after the
      process group. Layers that communicate in their forward pass (synchronised batch norm) need the same probes on
      every rank.
    - *The user's own gradient* serves as the gradient of the step where that is proven bit for bit: once wholly,
      and at every due step in what the loss sends back into the model's output.

    Args:
        model: Any module, also compiled or wrapped for data-parallel training.
        loss_fn: ``loss_fn(model, batch) -> scalar``, the loss that the loop trains on, without loss scale. Used only
            by probes that evaluate the loss again; it must reach the parameters through ``model``, which is handed to
            it out of its wrappers.
        optimizer: The optimizer or optimizers. With them gradients are read right before the update; without, from
            ``.grad`` when the step ends, and probes that need a learning rate must be given one.
        probes: Probes, or their codes.
        every: Read at steps 0, every, 2 * every, ...; a probe's own ``every`` goes before this.
        record_to: None keeps the records in memory; a path makes or continues a run folder there; or anything with
            ``append``, ``flush`` and ``frame``.
        cell: Name under which the records are filed.
        scaler: The gradient scaler of a mixed-precision loop. Needs ``optimizer``.

    Raises:
        UsageError: A code names no probe, ``every`` is below 1, what was given is no model or optimizer, or a scaler
            comes without optimizer.
        StoreError: ``record_to`` is a folder that cannot be written or holds another run.

    Example:
        >>> scope = Scope(model, loss_fn, optimizer, probes=["gradient_flow"], every=50)
        >>> for batch in loader:
        ...     with scope.step(batch):
        ...         optimizer.zero_grad()
        ...         loss_fn(model, batch).backward()
        ...         optimizer.step()
        >>> scope.records()
    """

    def __init__(
        self,
        model: Module,
        loss_fn: LossFn,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        probes: Sequence[AbstractProbe | str] = (),
        *,
        every: int = 50,
        record_to: "str | PathLike[str] | RecordSink | None" = None,
        cell: str = "scope",
        scaler: "GradScaler | None" = None,
    ) -> None:
        if every < 1:
            raise UsageError(f"every={every} must be 1 or more")
        if not isinstance(model, Module):
            raise UsageError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        rank = rank_of_many()
        self.model, self.loss_fn, self.every = model, loss_fn, every
        self.cell = cell if rank is None else f"{cell}.rank{rank}"
        given = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
        if not all(hasattr(one, "param_groups") for one in given):
            raise UsageError("optimizer must be a torch optimizer or a sequence of them")
        if scaler is not None and not given:
            raise UsageError("with a gradient scaler the scope needs the optimizer too")
        self.optimizers: list[Optimizer] = given
        self.scaler = scaler
        self.probes = [_probe(probe) for probe in probes]
        self.index = 0
        self._records: list[Record] = []
        self._drained = 0
        self._sink = _sink(record_to, cell)
        self._off: set[int] = set()
        self._inside: StepGuard | None = None
        self._layout: Layout | None = None
        self._proven: dict[tuple[Any, ...], bool] = {}
        self._companion: Companion | None = None

    def step(self, batch: Any) -> "StepGuard":
        """Return the context manager around one training step.

        The update that the costly probes see is the difference of the parameters between its entry and its exit, so
        it is right for any optimizer. An exception inside propagates unchanged; then nothing is recorded, and the
        step does not count.

        Args:
            batch: What ``loss_fn`` takes, of any structure. Evaluated again as it is.
        """
        return StepGuard(self, batch)

    def micro_batch(self, batch: Any, share: float | None = None) -> None:
        """Say that a step accumulates gradients, right before the forward pass of one of its batches.

        The step's loss is the sum of ``share * loss_fn(model, batch)`` over its micro-batches, and what
        ``step(batch)`` was given is passed over.

        Args:
            batch: What ``loss_fn`` takes. Kept until the step ends.
            share: Its weight in the step's loss; None for all alike, with sum 1.

        Raises:
            UsageError: Called outside a step.
        """
        if self._inside is None:
            raise UsageError("scope.micro_batch() belongs inside `with scope.step(...)`")
        self._inside.add(batch, share)

    def due(self, index: int) -> list[AbstractProbe]:
        """Return the probes that read at step ``index``."""
        return [
            probe for probe in self.probes if index % (probe.every or self.every) == 0 and id(probe) not in self._off
        ]

    def records(self) -> "polars.DataFrame":
        """Return all records as a polars frame in canonical row order; columns as of ``MemoryStore.frame``."""
        if self._sink is not None:
            self._sink.flush()
            return self._sink.frame()
        store = MemoryStore()
        store.append(self._records)
        return store.frame()

    def drain(self) -> list[Record]:
        """Return the records since the last drain.

        Raises:
            UsageError: Records go to a store, which is read by ``records()``.
        """
        if self._sink is not None:
            raise UsageError("records go to a store: read them by scope.records(), or leave record_to out")
        fresh = self._records[self._drained :]
        self._drained = len(self._records)
        return fresh

    def close(self) -> None:
        """Write out what is pending. The scope can be used again."""
        if self._sink is not None:
            self._sink.flush()

    def __enter__(self) -> "Scope":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, records: list[Record]) -> None:
        if self._sink is None:
            self._records += records
            return
        self._sink.append(records)

    def _switch_off(self, probe: AbstractProbe, error: Exception) -> None:
        self._off.add(id(probe))
        warnings.warn(
            f"probe {probe.CODE!r} failed at step {self.index} and is switched off; training goes on: "
            f"{type(error).__name__}: {error}",
            ProbeWarning,
            stacklevel=4,  # the line of the user's with statement
        )


def _probe(probe: AbstractProbe | str) -> AbstractProbe:
    if isinstance(probe, AbstractProbe):
        return probe
    if isinstance(probe, str):
        from normscope.probes import get

        return get(probe)()
    raise UsageError(f"a probe or its code was expected, not {probe!r}")


def _sink(record_to: "str | PathLike[str] | RecordSink | None", cell: str) -> RecordSink | None:
    if record_to is None or not isinstance(record_to, (str, PathLike)):
        return record_to
    return Store.create(record_to, {"kind": "scope", "cell": cell})
