"""The recorder: probes read at the scheduled steps of any training loop, and their records are kept."""

from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch.nn import Module
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.modules.autocast import without_autocast
from normscope.modules.rng import streams_kept
from normscope.probes._arguments import check_arguments, checked_sinks, listed, open_cell, optimizers_of
from normscope.probes._cost import say_cost
from normscope.probes._find import Wanted, chosen_probes
from normscope.probes._probe import AbstractProbe
from normscope.probes._probe_set import ProbeSet
from normscope.probes._probed_step import ProbedStep
from normscope.probes._record_log import RecordLog
from normscope.probes._replay import LossFn
from normscope.probes._sinks import RecordSink, Sink
from normscope.probes._step_in_progress import StepInProgress, StepObserver
from normscope.probes._training_loop import TrainingLoop
from normscope.probes._warnings import WiringWarning
from normscope.records import Finding, Record
from normscope.usercode import warn_user

if TYPE_CHECKING:
    import polars
    from torch.amp import GradScaler


class Recorder:
    """Reads probes at the scheduled steps of a training loop and keeps their records, without a trace in the loop.

    The engine of ``normscope.Scope``, which adds rules and reports. Training with a recorder is bit-identical to
    training without. At steps that are not due it only compares numbers. A probe that raises is reported once by a
    ``ProbeWarning`` with its name, and switched off. At the first due step the recorder proves that the model ran, that
    a gradient came back, that the optimizer holds the model's parameters and that the gradient is that of ``loss_fn``;
    if not, one ``WiringWarning`` names the cause.

    Args:
        model: Any module, also compiled or wrapped for data-parallel training.
        loss_fn: The loss that the loop trains on: as of ``normscope.Scope``, and so are the options that follow.
        optimizer: Likewise.
        probes: Likewise; none by default.
        every: Likewise.
        record_to: Likewise.
        cell: Likewise.
        scaler: Likewise.
        also: Likewise.
        start: Likewise.
        sinks: Likewise.
        observers: What else follows the steps.
        tells_cost: Whether a line tells, at the first step that is read, what dear probes cost.

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
        index: Number of the next step.
        attached: Whether hooks of the optimizers end the steps.

    Raises:
        UsageError: A code names no probe, ``every`` is below 1, ``model`` is a scripted module, an argument is not of
            its kind, or a scaler comes without optimizer.
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
        tells_cost: bool = True,
    ) -> None:
        check_arguments(model, loss_fn, every, start, scaler, optimizer, record_to)
        self.model, self.loss_fn, self.every, self.scaler = model, loss_fn, int(every), scaler
        self.optimizers = optimizers_of(optimizer)
        self.sinks, self._observers = tuple(checked_sinks(sinks)), tuple(observers)
        self._probe_set = ProbeSet(chosen_probes(probes), has_loss=loss_fn is not None)
        self.probes = self._probe_set.probes
        self.sink, self.cell, self.index = open_cell(record_to, cell, start, self._claimed_facts())
        self._log = RecordLog(self.sink, self.sinks)
        self._loop = TrainingLoop(model, loss_fn, self.optimizers, scaler, also=tuple(listed(also)))
        self._inside: StepInProgress | None = None
        self._waiting_step: _StepContext | None = None
        self._tells_cost, self._updating, self.attached = tells_cost, False, False

    @property
    def not_read(self) -> dict[str, str]:
        """Codes of what has read nothing so far, each with the reason in words."""
        return dict(self._probe_set.not_read)

    @property
    def wiring(self) -> list[str]:
        """Why what was read may be wrong: what the recorder was given does not fit the loop. Empty if it does."""
        return list(self._probe_set.wiring)

    def note_wiring(self, cause: str) -> None:
        """Warn once that something does not fit the loop, and keep it for summary and page."""
        self._probe_set.note_wiring([cause], self.index)

    def _claimed_facts(self) -> dict[str, Any]:
        probes = [probe.CODE for probe in self.probes]
        return {"model": type(self.model).__name__, "every": self.every, "probes": probes}

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
        if inside is None:
            return
        inside.end(error)
        if error is not None:
            return
        try:
            if inside.probed is not None:
                with without_autocast(), streams_kept(self._log.has_foreign_sinks or inside.probed.has_foreign_code):
                    self._read(inside.probed)
            inside.let_observers_read()
        finally:
            self.index += 1
        self._log.tick()

    def _begin(self, batches: list[Any]) -> None:
        due = self.due(self.index)
        if due and self._tells_cost:
            self._tells_cost = False
            say_cost(due, self.every)
        step = StepInProgress(self._loop, due, batches, self.cell, self.index, self._observers, restarts=self.attached)
        step.begin()
        if self._updating:
            step.set_updating(True)
        self._inside = step

    @property
    def inside_step(self) -> bool:
        """Whether a step is under way."""
        return self._inside is not None

    def wants(self, index: int) -> bool:
        """Whether anything follows the step ``index``: a probe that is due, or an observer."""
        return bool(self._observers or self.due(index))

    def give_up(self, why: str) -> None:
        """Note that nothing is read any more."""
        self._probe_set.give_up(why)

    def skip(self) -> None:
        """Count a step at which nothing was due."""
        self.index += 1
        self._log.tick()

    def set_updating(self, updating: bool) -> None:
        """Note that an optimizer's ``step`` begins or has ended: its closure may evaluate one loss several times."""
        self._updating = updating  # the pass that begins a step may lie inside a closure
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
        return self._probe_set.due(index, self.every)

    def records(self) -> "polars.DataFrame":
        """Return all records as a polars frame in canonical row order; columns as of ``MemoryStore.frame``."""
        return self._log.frame()

    def drain(self) -> list[Record]:
        """Return the records since the last drain.

        Raises:
            UsageError: Records go to a store, which is read by ``records()``.
        """
        return self._log.drain()

    def tell(self, finding: Finding) -> None:
        """Hand a finding to the sinks."""
        self._log.tell(finding)

    def close(self) -> None:
        """Write out what is pending, and tell what could not be written. The recorder can be used again."""
        self.deliver(None)

    def deliver(self, page: "PathLike[str] | None") -> None:
        """Write out what is pending, and hand a page to the sinks."""
        self._log.close(page)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, probed: ProbedStep) -> None:
        try:
            records = probed.read()
        except Exception as wrong:  # none that a probe answers for: it must not end the user's training
            self._probe_set.switch_off(self.due(self.index), wrong, self.index)
            return
        self._log.take(records)
        self._probe_set.note(probed, self.index)


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
