"""The recorder: probes read at the scheduled steps of any training loop, and their records are kept."""

import os
import weakref
from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from torch.nn import Module
from torch.optim import Optimizer

from normscope._errors import NormscopeError, UsageError
from normscope.modules.autocast import without_autocast
from normscope.modules.hooks import call_new_hooks
from normscope.modules.wrapped import rank_of_many, refuse_fixed, unwrap_optimizer, world_size
from normscope.probes._cost import say_cost
from normscope.probes._find import Wanted, chosen_probes
from normscope.probes._forward_batch import ForwardBatches
from normscope.probes._probe import AbstractProbe
from normscope.probes._probed_step import ProbedStep, TrainingLoop
from normscope.probes._replay import LossFn
from normscope.probes._sinks import Delivery, RecordSink, Sink
from normscope.records import MemoryStore, Record, Store
from normscope.records.cell_names import claim_cell, last_step, require_cell_name, take_up_cell
from normscope.usercode import warn_user

if TYPE_CHECKING:
    import polars
    from torch.amp import GradScaler

_NO_LOSS = "it evaluates the loss again, and the scope was given no loss_fn(model, batch)"


class ProbeWarning(UserWarning):
    """A probe failed and is switched off; training goes on."""


class WiringWarning(ProbeWarning):
    """What the scope was given and what the training loop does do not fit together; training goes on."""


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


class Recorder:
    """Reads probes at the scheduled steps of a training loop and keeps their records, without a trace in the loop.

    The engine of ``normscope.Scope``, which adds rules and reports. Training with a recorder is bit-identical to
    training without. At steps that are not due it only compares numbers. A probe that raises is reported once by a
    ``ProbeWarning`` with its name, and switched off. At the first due step the recorder proves that the model ran, that
    a gradient came back, that the optimizer holds the model's parameters and that the gradient is that of ``loss_fn``;
    if not, one ``WiringWarning`` names the cause.

    Args:
        model: Any module, also compiled or wrapped for data-parallel training.
        loss_fn: ``loss_fn(model, batch) -> scalar``, the loss that the loop trains on, without loss scale. Used only
            by probes that evaluate the loss again; it must reach the parameters through ``model``, which it gets
            without its wrappers. Without it those probes are not read, and ``not_read`` says so.
        optimizer: The optimizer or optimizers. With them it is seen what they are handed, and for which
            parameters; without, probes that need a learning rate must be given one.
        probes: Probes, their codes or classes, a question, ``"all"``: see ``chosen_probes``.
        every: Read at steps 0, every, 2 * every, ...; a probe's own ``every`` takes precedence.
        record_to: None keeps the records in memory; a path makes or continues a run folder there; or anything with
            ``append``, ``flush`` and ``frame``.
        cell: Name under which the records are filed; with several processes ``CELL.rank0``, ``CELL.rank1``, ... A
            further run into the same folder is filed under ``CELL.run2``, ``CELL.run3``, ...
        scaler: The gradient scaler of a mixed-precision loop. Needs ``optimizer``.
        also: Modules, optimizers, tensors and other objects beside the model that evaluating the loss changes, and
            that are put back after it.
        start: Number of the first step: that of a training that is taken up again. ``"continue"`` takes up the last
            run in the folder after its last recorded step.
        sinks: Further places where records are shown; each has ``append(records)``, ``finding(finding)`` and
            ``close(report)``.
        observers: What else follows the steps.
        facts: What is noted in the run folder about this run.

    Attributes:
        model: As given.
        loss_fn: As given.
        optimizers: The optimizers, as a list.
        scaler: As given.
        probes: The probes.
        every: As given.
        cell: Name under which this process files its records.
        sink: Where the records go; None keeps them in memory.
        sinks: As given.
        deliveries: The ways to ``sink`` and ``sinks``.
        index: Number of the next step.
        attached: Whether hooks of the optimizers end the steps.

    Raises:
        UsageError: A code names no probe, ``every`` is below 1, ``model`` is no module or a scripted one, ``loss_fn``
            cannot be called, ``optimizer`` is no optimizer, ``start`` is no number of a step, ``cell`` is no name, or
            a scaler comes without optimizer.
        StoreError: ``record_to`` is a folder that cannot be written or holds another run.
    """

    def __init__(
        self,
        model: Module,
        loss_fn: LossFn | None = None,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        probes: Wanted = (),
        *,
        every: int = 50,
        record_to: "str | PathLike[str] | RecordSink | None" = None,
        cell: str = "scope",
        scaler: "GradScaler | None" = None,
        also: Sequence[Any] = (),
        start: int | str = 0,
        sinks: Sequence[Sink] = (),
        observers: Sequence[StepObserver] = (),
    ) -> None:
        _check(model, loss_fn, every, start, scaler is not None and optimizer is None)
        self.model, self.loss_fn, self.every, self.scaler = model, loss_fn, every, scaler
        self.optimizers = optimizers_of(optimizer)
        self._not_read: dict[str, str] = {}
        self.probes = self._readable(chosen_probes(probes))
        self.sink, self.cell, self.index = _opened(record_to, cell, start, self._claimed_facts())
        self.sinks = tuple(sinks)
        self._store = None if self.sink is None else Delivery(self.sink)
        self.deliveries = [*filter(None, [self._store]), *map(Delivery, sinks)]
        self._observers = tuple(observers)
        self._loop = TrainingLoop(model, loss_fn, self.optimizers, scaler, also=tuple(also))
        self._records: list[Record] = []
        self._drained = 0
        self._off: set[int] = set()
        self._inside: _StepInProgress | None = None
        self._waiting_step: _StepContext | None = None
        self._said_cost = False
        self.attached = False
        if self.deliveries:  # what is pending when the program ends, or the recorder is dropped, is written out
            weakref.finalize(self, _flush_all, self.deliveries, os.getpid())

    @property
    def not_read(self) -> dict[str, str]:
        """Codes of what has read nothing so far, each with the reason in words."""
        return dict(self._not_read)

    def _readable(self, probes: list[AbstractProbe]) -> list[AbstractProbe]:
        """Return the probes that can be read with what the recorder was given; note why the others cannot."""
        if self.loss_fn is not None:
            return probes
        found = []
        for probe in probes:
            instead = probe.without_loss()
            if instead is None:
                self._not_read[probe.CODE] = _NO_LOSS
            else:
                found.append(instead)
        return found

    def _claimed_facts(self) -> dict[str, Any]:
        return {
            "model": type(self.model).__name__,
            "every": self.every,
            "probes": [probe.CODE for probe in self.probes],
        }

    def step(self, batch: Any) -> "_StepContext":
        """Return the context manager around one training step.

        For the costly probes the update is the difference of the parameters between entry and exit, so it is right
        for any optimizer. An exception inside propagates unchanged; then nothing is recorded, and the step does not
        count.

        Args:
            batch: What ``loss_fn`` takes, of any structure. Evaluated again as it is.
        """
        if self._waiting_step is not None:
            self._waiting_step = None
            warn_user(
                "scope.step(batch) was called and never entered, so nothing is read: write `with scope.step(batch):` "
                "around the step",
                WiringWarning,
            )
        self._waiting_step = _StepContext(self, batch)
        return self._waiting_step

    def begin(self, batch: Any = None) -> None:
        """Begin a step, where a ``with`` block cannot be put around it: in the callback of a trainer, say.

        A step that was begun and not ended, because an exception broke it off, is given up: it does not count.

        Args:
            batch: What ``loss_fn`` takes. If None, it is what the model's forward is called with during the step: its
                one argument, the mapping of its keywords, or the tuple of its arguments; one batch for each call that
                follows a backward pass.
        """
        if self._inside is not None:
            self._inside.end(GeneratorExit())
            self._inside = None
        self._begin([] if batch is None else [batch])

    def end(self, error: BaseException | None = None) -> None:
        """End the step that ``begin`` has begun, after the optimizer has stepped; without one nothing happens.

        Args:
            error: The exception by which the step ended, if one did: then nothing is recorded, and the step does not
                count.
        """
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.end(error)
            self.index += error is None
            self._tick()

    def _begin(self, batches: list[Any]) -> None:
        self._inside = _StepInProgress(self, batches)
        try:
            self._inside.begin()
        except BaseException:
            inside, self._inside = self._inside, None
            inside.give_up()
            raise

    @property
    def inside_step(self) -> bool:
        """Whether a step is under way."""
        return self._inside is not None

    def wants(self, index: int) -> bool:
        """Whether anything follows the step ``index``: a probe that is due, or an observer."""
        return bool(self._observers or self.due(index))

    def skip(self) -> None:
        """Count a step at which nothing was due."""
        self.index += 1
        self._tick()

    def _tick(self) -> None:
        if self._store is not None:
            self._store.tick()

    def set_updating(self, updating: bool) -> None:
        """Note that an optimizer's ``step`` begins or has ended: its closure may evaluate one loss several times."""
        if self._inside is not None:
            self._inside.set_updating(updating)

    def adopt(self, optimizer: Optimizer) -> None:
        """Take up an optimizer of the loop that the recorder was not given, as it makes its first update."""
        self.optimizers.append(optimizer)
        if self._inside is not None:
            self._inside.adopt(optimizer)

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
            raise UsageError("scope.micro_batch() belongs inside `with scope.step(...)`, or between begin() and end()")
        self._inside.announce(batch, share)

    def due(self, index: int) -> list[AbstractProbe]:
        """Return the probes that read at step ``index``."""
        return [
            probe for probe in self.probes if index % (probe.every or self.every) == 0 and id(probe) not in self._off
        ]

    def records(self) -> "polars.DataFrame":
        """Return all records as a polars frame in canonical row order; columns as of ``MemoryStore.frame``."""
        if self.sink is None or self._store is None:
            return _in_memory(self._records)
        self._store.flush()
        waiting = self._store.waiting()
        try:
            frame = self.sink.frame()
        except Exception:
            if not waiting:
                raise
            return _in_memory(waiting)  # the folder is gone: what it has not taken is here
        if not waiting or hasattr(self.sink, "unwritten"):  # a store's frame has what is not written, too
            return frame
        import polars

        return polars.concat([frame, _in_memory(waiting)], how="diagonal_relaxed")

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
        """Write out what is pending, and tell what could not be written. The recorder can be used again."""
        self.deliver(None)

    def deliver(self, page: "PathLike[str] | None") -> None:
        """Write out what is pending, and hand a page to the sinks."""
        for delivery in self.deliveries:
            delivery.close(page)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, records: list[Record]) -> None:
        if self._store is None:
            self._records += records
        for delivery in self.deliveries:
            delivery.append(records)

    def _switch_off(self, probes: Sequence[AbstractProbe], error: Exception) -> None:
        self._off.update(map(id, probes))
        reason = str(error) if isinstance(error, NormscopeError) else f"{type(error).__name__}: {error}"
        self._not_read |= {probe.CODE: f"switched off at step {self.index}: {reason}" for probe in probes}
        codes, many = ", ".join(repr(probe.CODE) for probe in probes), len(probes) > 1
        warn_user(
            f"{'probes' if many else 'probe'} {codes} failed at step {self.index} and {'are' if many else 'is'} "
            f"switched off; training goes on: {reason}",
            ProbeWarning,
        )


class _StepInProgress:
    """A step that is under way: its probes if any are due, and the observers."""

    def __init__(self, recorder: Recorder, batches: list[Any]) -> None:
        self._recorder, self._batches = recorder, batches
        self.probed: ProbedStep | None = None
        self._forward: ForwardBatches | None = None

    def begin(self) -> None:
        recorder = self._recorder
        due = recorder.due(recorder.index)
        if due:
            if not recorder._said_cost:
                recorder._said_cost = True
                say_cost(due, recorder.every)
            self.probed = ProbedStep(recorder._loop, due, self._batches, recorder.cell, recorder.index)
            self.probed.begin()
        for observer in recorder._observers:
            observer.begin(recorder.index, self._batches)
        if not self._batches and (self.probed is not None or recorder._observers):
            restart = self._restart if recorder.attached else None
            self._forward = ForwardBatches(recorder.model, self.micro_batch, restart)
            self._forward.attach()

    def announce(self, batch: Any, share: float | None) -> None:
        if self._forward is not None:  # batches that are announced need not be heard
            self._forward.detach()
            self._forward = None
        self.micro_batch(batch, share)

    def micro_batch(self, batch: Any, share: float | None = None) -> None:
        for observer in self._recorder._observers:
            observer.micro_batch(batch)
        if self.probed is not None:
            self.probed.add_micro_batch(batch, share)

    def _restart(self, module: Module, args: Any, kwargs: Any) -> None:
        """Begin anew: the pass so far was thrown away, as a gradient scaler does with one that has overflowed."""
        known = set(module._forward_pre_hooks)
        self.give_up()
        for observer in self._recorder._observers:
            observer.end(DiscardedPassError())
        self.probed = self._forward = None
        self.begin()
        call_new_hooks(module, known, args, kwargs)

    def set_updating(self, updating: bool) -> None:
        if self._forward is not None:
            self._forward.set_updating(updating)

    def adopt(self, optimizer: Optimizer) -> None:
        if self.probed is not None:
            self.probed.adopt(optimizer)

    def give_up(self) -> None:
        if self._forward is not None:
            self._forward.detach()
        if self.probed is not None:
            self.probed.end()

    def end(self, error: BaseException | None) -> None:
        recorder, probed = self._recorder, self.probed
        for observer in recorder._observers:
            observer.end(error)
        self.give_up()
        if error is not None:
            return
        if probed is not None:
            if self._forward is not None:
                probed.no_batch = self._forward.why_unknown()
            with without_autocast():
                self._read(probed)
        for observer in recorder._observers:
            with without_autocast():
                observer.read()

    def _read(self, probed: ProbedStep) -> None:
        recorder = self._recorder
        try:
            records = probed.read()
        except Exception as wrong:  # none that a probe answers for: it must not end the user's training
            recorder._switch_off(recorder.due(recorder.index), wrong)
            return
        recorder._take(records)
        causes = {id(error): error for _, error in probed.failures.values()}
        for key, error in causes.items():  # probes that failed by one cause are told of in one warning
            by_it = {id(probe) for probe, other in probed.failures.values() if id(other) == key}
            recorder._switch_off([probe for probe in recorder.probes if id(probe) in by_it], error)
        for code, reason in probed.nothing.items():
            recorder._not_read.setdefault(code, reason)
        for code in probed.values_read:
            recorder._not_read.pop(code, None)
        if probed.wiring_causes:
            warn_user(
                f"what the scope was given does not fit the training loop (step {recorder.index}): "
                + "; ".join(probed.wiring_causes),
                WiringWarning,
            )


class _StepContext:
    """The user's block of one step: due steps set hooks on entry and read on exit, other steps only count."""

    __slots__ = ("_batch", "_recorder")

    def __init__(self, recorder: Recorder, batch: Any) -> None:
        self._recorder, self._batch = recorder, batch

    def __enter__(self) -> None:
        recorder = self._recorder
        if recorder._inside is not None:
            raise UsageError("scope.step() was entered inside another step of the same scope")
        recorder._waiting_step = None
        recorder._begin([self._batch])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._recorder.end(error)


def _in_memory(records: Sequence[Record]) -> "polars.DataFrame":
    store = MemoryStore()
    store.append(records)
    return store.frame()


def optimizers_of(given: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    """Return one optimizer, several or none as a list.

    Raises:
        UsageError: One of them is no optimizer.
    """
    optimizers: list[Any] = [given] if hasattr(given, "param_groups") else list(given or ())
    if not all(hasattr(optimizer, "param_groups") for optimizer in optimizers):
        raise UsageError("optimizer must be a torch optimizer or a sequence of them")
    return [unwrap_optimizer(optimizer) for optimizer in optimizers]


def _flush_all(deliveries: Sequence[Delivery], process: int) -> None:
    if os.getpid() == process:  # a forked process has a copy of what its parent writes
        for delivery in deliveries:
            delivery.flush()


def _check(model: Any, loss_fn: Any, every: Any, start: Any, scaler_alone: bool) -> None:
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


def _opened(
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
