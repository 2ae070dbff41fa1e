"""The recorder: probes read at the scheduled steps of any training loop, and their records are kept."""

import warnings
from collections.abc import Iterable, Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from torch.nn import Module
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.modules.autocast import without_autocast
from normscope.modules.wrapped import rank_of_many
from normscope.probes._find import Wanted, chosen_probes
from normscope.probes._probe import AbstractProbe
from normscope.probes._probed_step import ProbedStep, TrainingLoop
from normscope.probes._replay import LossFn
from normscope.records import MemoryStore, Record, Store

if TYPE_CHECKING:
    import polars
    from torch.amp import GradScaler


class ProbeWarning(UserWarning):
    """A probe failed and is switched off; training goes on."""


class RecordSink(Protocol):
    """Where records go."""

    def append(self, records: Iterable[Record]) -> None:
        """Take records."""

    def flush(self) -> None:
        """Write out the records taken so far."""

    def frame(self) -> "polars.DataFrame":
        """Return all records."""


class StepObserver(Protocol):
    """Follows the steps of a recorder beside its probes. None of its methods may raise into the user's step."""

    def begin(self, index: int, batch: Any) -> None:
        """Step ``index`` begins; the probes' own hooks are set."""

    def micro_batch(self, batch: Any) -> None:
        """The step accumulates gradients: ``batch`` is the next of its batches."""

    def end(self, error: BaseException | None) -> None:
        """The user's part of the step is over, by an exception if ``error`` is given; no probe has read yet."""

    def read(self) -> None:
        """The step ended without exception, its probes have read, and their hooks are removed."""


class Recorder:
    """Reads probes at the scheduled steps of a training loop and keeps their records, without a trace in the loop.

    The engine of ``normscope.Scope``, which adds rules and reports. Training with a recorder is bit-identical to
    training without. At steps that are not due it only compares numbers. A probe that raises is reported once by a
    ``ProbeWarning`` with its name, and switched off.

    Args:
        model: Any module, also compiled or wrapped for data-parallel training.
        loss_fn: ``loss_fn(model, batch) -> scalar``, the loss that the loop trains on, without loss scale. Used only
            by probes that evaluate the loss again; it must reach the parameters through ``model``, which it gets
            without its wrappers.
        optimizer: The optimizer or optimizers. With them gradients are read right before the update; without, from
            ``.grad`` when the step ends, and probes that need a learning rate must be given one.
        probes: Probes, their codes or classes, a question, ``"all"``: see ``chosen_probes``.
        every: Read at steps 0, every, 2 * every, ...; a probe's own ``every`` takes precedence.
        record_to: None keeps the records in memory; a path makes or continues a run folder there; or anything with
            ``append``, ``flush`` and ``frame``.
        cell: Name under which the records are filed; with several processes ``CELL.rank0``, ``CELL.rank1``, ...
        scaler: The gradient scaler of a mixed-precision loop. Needs ``optimizer``.
        also: Modules, optimizers, tensors and other objects beside the model that evaluating the loss changes, and
            that are put back after it.
        observers: What else follows the steps.

    Attributes:
        model: As given.
        loss_fn: As given.
        optimizers: The optimizers, as a list.
        scaler: As given.
        probes: The probes.
        every: As given.
        cell: Name under which this process files its records.
        sink: Where the records go; None keeps them in memory.
        index: Number of the next step.

    Raises:
        UsageError: A code names no probe, ``every`` is below 1, ``model`` is no module, ``optimizer`` is no optimizer,
            or a scaler comes without optimizer.
        StoreError: ``record_to`` is a folder that cannot be written or holds another run.
    """

    def __init__(
        self,
        model: Module,
        loss_fn: LossFn,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        probes: Wanted = (),
        *,
        every: int = 50,
        record_to: "str | PathLike[str] | RecordSink | None" = None,
        cell: str = "scope",
        scaler: "GradScaler | None" = None,
        also: Sequence[Any] = (),
        observers: Sequence[StepObserver] = (),
    ) -> None:
        if every < 1:
            raise UsageError(f"every={every} must be 1 or more")
        if not isinstance(model, Module):
            raise UsageError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        rank = rank_of_many()
        self.model, self.loss_fn, self.every = model, loss_fn, every
        self.cell = cell if rank is None else f"{cell}.rank{rank}"
        self.optimizers = optimizers_of(optimizer)
        if scaler is not None and not self.optimizers:
            raise UsageError("with a gradient scaler the scope needs the optimizer too")
        self.scaler = scaler
        self.probes = chosen_probes(probes)
        self.index = 0
        self.sink = _sink(record_to, cell)
        self._observers = tuple(observers)
        self._loop = TrainingLoop(model, loss_fn, self.optimizers, scaler, also=tuple(also))
        self._records: list[Record] = []
        self._drained = 0
        self._off: set[int] = set()
        self._inside: _StepContext | None = None

    def step(self, batch: Any) -> "_StepContext":
        """Return the context manager around one training step.

        For the costly probes the update is the difference of the parameters between entry and exit, so it is right
        for any optimizer. An exception inside propagates unchanged; then nothing is recorded, and the step does not
        count.

        Args:
            batch: What ``loss_fn`` takes, of any structure. Evaluated again as it is.
        """
        return _StepContext(self, batch)

    def micro_batch(self, batch: Any, share: float | None = None) -> None:
        """Announce that a step accumulates gradients, right before the forward pass of each of its batches.

        The step's loss is the sum of ``share * loss_fn(model, batch)`` over its micro-batches; the batch given to
        ``step`` is then not used.

        Args:
            batch: What ``loss_fn`` takes. Kept until the step ends.
            share: Its weight in the step's loss; with None all have the same weight, with sum 1.

        Raises:
            UsageError: Called outside a step.
        """
        if self._inside is None:
            raise UsageError("scope.micro_batch() belongs inside `with scope.step(...)`")
        for observer in self._observers:
            observer.micro_batch(batch)
        if self._inside.probed is not None:
            self._inside.probed.add_micro_batch(batch, share)

    def due(self, index: int) -> list[AbstractProbe]:
        """Return the probes that read at step ``index``."""
        return [
            probe for probe in self.probes if index % (probe.every or self.every) == 0 and id(probe) not in self._off
        ]

    def records(self) -> "polars.DataFrame":
        """Return all records as a polars frame in canonical row order; columns as of ``MemoryStore.frame``."""
        if self.sink is not None:
            self.sink.flush()
            return self.sink.frame()
        store = MemoryStore()
        store.append(self._records)
        return store.frame()

    def drain(self) -> list[Record]:
        """Return the records since the last drain.

        Raises:
            UsageError: Records go to a store, which is read by ``records()``.
        """
        if self.sink is not None:
            raise UsageError("records go to a store: read them by scope.records(), or leave record_to out")
        fresh = self._records[self._drained :]
        self._drained = len(self._records)
        return fresh

    def close(self) -> None:
        """Write out what is pending. The recorder can be used again."""
        if self.sink is not None:
            self.sink.flush()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, records: list[Record]) -> None:
        if self.sink is None:
            self._records += records
            return
        self.sink.append(records)

    def _switch_off(self, probe: AbstractProbe, error: Exception) -> None:
        self._off.add(id(probe))
        warnings.warn(
            f"probe {probe.CODE!r} failed at step {self.index} and is switched off; training goes on: "
            f"{type(error).__name__}: {error}",
            ProbeWarning,
            stacklevel=4,  # the line of the user's with statement
        )


class _StepContext:
    """The user's block of one step: due steps set hooks on entry and read on exit, other steps only count."""

    __slots__ = ("_batch", "_recorder", "probed")

    def __init__(self, recorder: Recorder, batch: Any) -> None:
        self._recorder, self._batch = recorder, batch
        self.probed: ProbedStep | None = None

    def __enter__(self) -> None:
        recorder = self._recorder
        if recorder._inside is not None:
            raise UsageError("scope.step() was entered inside another step of the same scope")
        due = recorder.due(recorder.index)
        recorder._inside = self
        try:
            if due:
                self.probed = ProbedStep(recorder._loop, due, self._batch, recorder.cell, recorder.index)
                self.probed.begin()
            for observer in recorder._observers:
                observer.begin(recorder.index, self._batch)
        except BaseException:
            recorder._inside = None
            if self.probed is not None:
                self.probed.end()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        recorder, probed = self._recorder, self.probed
        recorder._inside = None
        for observer in recorder._observers:
            observer.end(error)
        try:
            if probed is not None:
                probed.end()
            if error is not None:
                return
            if probed is not None:
                with without_autocast():
                    self._read(probed)
            for observer in recorder._observers:
                with without_autocast():
                    observer.read()
        finally:
            if error is None:
                recorder.index += 1

    def _read(self, probed: ProbedStep) -> None:
        self._recorder._take(probed.read())
        for probe, error in probed.failures.values():
            self._recorder._switch_off(probe, error)


def optimizers_of(given: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    """Return one optimizer, several or none as a list.

    Raises:
        UsageError: One of them is no optimizer.
    """
    optimizers = [given] if isinstance(given, Optimizer) else list(given or ())
    if not all(hasattr(optimizer, "param_groups") for optimizer in optimizers):
        raise UsageError("optimizer must be a torch optimizer or a sequence of them")
    return optimizers


def _sink(record_to: "str | PathLike[str] | RecordSink | None", cell: str) -> RecordSink | None:
    if record_to is None or not isinstance(record_to, (str, PathLike)):
        return record_to
    return Store.create(record_to, {"kind": "scope", "cell": cell})
