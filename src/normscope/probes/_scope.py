"""The scope: attach probes to any training loop."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from torch.nn import Module
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.probes._probe import AbstractProbe, Step
from normscope.probes._replay import LossFn, Replay, Start
from normscope.records import MemoryStore, Record, Store

if TYPE_CHECKING:
    import polars


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


class Scope:
    """Reads probes at the scheduled steps of a training loop, and leaves no trace in it.

    Training with a scope attached is bit-identical to training without. Steps that are not due cost a comparison.
    A probe that fails is reported once by a ``ProbeWarning`` with its name and switched off.

    Args:
        model: Any module.
        loss_fn: ``loss_fn(model, batch) -> scalar``, the loss that the loop trains on. Used only by probes that
            evaluate the loss again; it must reach the parameters through ``model``.
        optimizer: The optimizer or optimizers. With them gradients are read right before the update; without, from
            ``.grad`` when the step ends, and probes that need a learning rate must be given one.
        probes: Probes, or their codes.
        every: Read at steps 0, every, 2 * every, ...; a probe's own ``every`` goes before this.
        record_to: None keeps the records in memory; a path makes or continues a run folder there; or anything with
            ``append``, ``flush`` and ``frame``.
        cell: Name under which the records are filed.

    Raises:
        UsageError: A code names no probe, ``every`` is below 1, or what was given is no model or optimizer.
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
    ) -> None:
        if every < 1:
            raise UsageError(f"every={every} must be 1 or more")
        if not isinstance(model, Module):
            raise UsageError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        self.model, self.loss_fn, self.every, self.cell = model, loss_fn, every, cell
        given = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
        if not all(hasattr(one, "param_groups") for one in given):
            raise UsageError("optimizer must be a torch optimizer or a sequence of them")
        self.optimizers: list[Optimizer] = given
        self.probes = [_probe(probe) for probe in probes]
        self.index = 0
        self._records: list[Record] = []
        self._drained = 0
        self._sink = _sink(record_to, cell)
        self._off: set[int] = set()
        self._inside = False

    def step(self, batch: Any) -> "_Step":
        """Return the context manager around one training step.

        The update that the costly probes see is the difference of the parameters between its entry and its exit, so
        it is right for any optimizer. An exception inside propagates unchanged; then nothing is recorded, and the
        step does not count.

        Args:
            batch: What ``loss_fn`` takes, of any structure. Evaluated again as it is.
        """
        return _Step(self, batch)

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


class _Step:
    """One step of a scope. Due steps take a start, set hooks, and read on exit; others only count."""

    __slots__ = ("_batch", "_due", "_failed", "_scope", "_step")

    def __init__(self, scope: Scope, batch: Any) -> None:
        self._scope, self._batch = scope, batch
        self._due: list[AbstractProbe] = []
        self._step: Step | None = None
        self._failed: dict[int, tuple[AbstractProbe, Exception]] = {}

    def __enter__(self) -> None:
        scope = self._scope
        if scope._inside:
            raise UsageError("scope.step() was entered inside another step of the same scope")
        self._due = scope.due(scope.index)
        scope._inside = True
        if not self._due:
            return
        try:
            self._begin()
        except BaseException:
            scope._inside = False
            if self._step is not None:
                self._step.detach()
            raise

    def _begin(self) -> None:
        scope = self._scope
        step = self._step = Step(scope.cell, scope.index, scope.model, scope.optimizers, self._fail)
        replaying = [probe for probe in self._due if probe.REPLAYS]
        if replaying:
            try:
                start = step.start = Start(scope.model)
                step.keep(scope.model.register_forward_pre_hook(_once(lambda: start.note_modes(scope.model))))
            except Exception as error:
                for probe in replaying:
                    self._fail(probe, error)
        for probe in self._due:
            self._try(probe, probe.watch, step)
        for optimizer in scope.optimizers:
            if hasattr(optimizer, "register_step_pre_hook"):
                step.keep(optimizer.register_step_pre_hook(self._before_update))

    def _before_update(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}
        for probe in self._due:
            step = self._step
            assert step is not None
            self._try(probe, probe.before_update, step, parameters)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        scope, step = self._scope, self._step
        scope._inside = False
        try:
            if step is None:
                return
            step.detach()
            if error is None:
                self._read(step)
        finally:
            if error is None:
                scope.index += 1

    def _read(self, step: Step) -> None:
        scope = self._scope
        found: dict[int, list[Record]] = {}

        def read(probe: AbstractProbe) -> None:
            found[id(probe)] = list(probe.read(step))

        for probe in self._due:
            if not probe.REPLAYS:
                self._try(probe, read, probe)
        replaying = [probe for probe in self._due if probe.REPLAYS and id(probe) not in self._failed]
        if replaying and step.start is not None:
            replay = Replay(scope.model, scope.loss_fn, self._batch, step.start)
            with replay.opened():
                step.begin_replay(replay)
                for probe in replaying:
                    self._try(probe, read, probe)
        # In the order of the probes; what a probe had yielded before it failed is not kept.
        scope._take([record for probe in self._due for record in found.get(id(probe), ())])
        for probe, error in self._failed.values():
            scope._switch_off(probe, error)

    def _try(self, probe: AbstractProbe, act: Callable[..., None], *args: Any) -> None:
        if id(probe) in self._failed:
            return
        try:
            act(*args)
        except Exception as error:
            self._fail(probe, error)

    def _fail(self, probe: AbstractProbe, error: Exception) -> None:
        """Remember a failure; it is reported when the step ends, so that no warning breaks the user's pass."""
        self._failed.setdefault(id(probe), (probe, error))


def _once(act: Callable[[], None]) -> Callable[..., None]:
    called = False

    def hook(*_: Any) -> None:
        nonlocal called
        if not called:
            called = True
            act()

    return hook


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
