"""What happens around one training step: hooks before it, reading after it, failures kept apart."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.modules.autocast import without_autocast
from normscope.modules.batches import Piece
from normscope.modules.rng import RngState
from normscope.modules.wrapped import calls_eagerly, eagerly, is_compiled, unwrap
from normscope.probes._own_pass import OwnPass
from normscope.probes._probe import AbstractProbe, Step
from normscope.probes._replay import Replay
from normscope.probes._start import Layout, Start
from normscope.records import Record

if TYPE_CHECKING:
    from torch.amp import GradScaler

    from normscope.probes._scope import Scope


class StepGuard:
    """One step of a scope. Due steps take a start, set hooks, and read on exit; others only count."""

    __slots__ = ("_batch", "_compiled", "_due", "_failed", "_model", "_own", "_pieces", "_scope", "_step")

    def __init__(self, scope: "Scope", batch: Any) -> None:
        self._scope, self._batch = scope, batch
        self._due: list[AbstractProbe] = []
        self._pieces: list[tuple[Any, float | None, RngState]] = []
        self._step: Step | None = None
        self._own: OwnPass | None = None
        self._failed: dict[int, tuple[AbstractProbe, Exception]] = {}

    def __enter__(self) -> None:
        scope = self._scope
        if scope._inside is not None:
            raise UsageError("scope.step() was entered inside another step of the same scope")
        self._due = scope.due(scope.index)
        scope._inside = self
        if not self._due and scope._companion is None:
            return
        try:
            if self._due:
                self._begin()
            if scope._companion is not None:
                scope._companion.begin(scope.index, self._batch)
        except BaseException:
            scope._inside = None
            if self._step is not None:
                self._step.detach()
            raise

    def add(self, batch: Any, share: float | None) -> None:
        """Take one of several batches, with the random streams as they are now."""
        if self._scope._companion is not None:
            self._scope._companion.micro_batch(batch)
        if self._due:
            self._pieces.append((batch, share, RngState(self._model)))

    def _begin(self) -> None:
        scope = self._scope
        self._model, self._compiled = unwrap(scope.model), is_compiled(scope.model)
        scale = float(scope.scaler.get_scale()) if scope.scaler is not None and scope.scaler.is_enabled() else 1.0
        step = self._step = Step(scope.cell, scope.index, self._model, scope.optimizers, self._fail, scale=scale)
        for probe in self._due:
            self._try(probe, probe.watch, step)
        replaying = [probe for probe in self._due if self._replays(probe)]
        if replaying:
            try:
                self._note_start(step)
            except Exception as error:
                for probe in replaying:
                    self._fail(probe, error)
        if not self._compiled:
            step.attach()
        for optimizer in scope.optimizers:
            if hasattr(optimizer, "register_step_pre_hook"):
                step.keep(optimizer.register_step_pre_hook(self._before_update))

    def _replays(self, probe: AbstractProbe) -> bool:
        """Whether a probe needs the loss evaluated again; what listens to compiled modules does."""
        assert self._step is not None
        return probe.REPLAYS or (self._compiled and probe in self._step.listening())

    def _note_start(self, step: Step) -> None:
        scope = self._scope
        if scope._layout is None or not scope._layout.fits(self._model):
            scope._layout = Layout(self._model)
        start = step.start = Start(self._model, scope._layout)
        if calls_eagerly(scope.model):
            step.keep(scope.model.register_forward_pre_hook(_once(lambda: start.note_modes(self._model))))
        if not self._compiled:
            self._own = OwnPass(self._model, start, step.scale, scope._proven)
            self._own.attach(step.keep)

    def _before_update(self, optimizer: Optimizer, *_: Any) -> None:
        step = self._step
        assert step is not None
        # A scaler has unscaled the gradients by now, unless the optimizer does it itself, in one kernel.
        step.gradients_scaled = step.scale != 1 and getattr(optimizer, "grad_scale", None) is not None
        parameters = {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}
        with torch.no_grad(), without_autocast():
            for probe in self._due:
                self._try(probe, probe.before_update, step, parameters)
        step.gradients_scaled = step.scale != 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        scope, step = self._scope, self._step
        scope._inside = None
        if scope._companion is not None:
            scope._companion.end(error)
        try:
            if step is not None:
                step.detach()
                if error is None:
                    with without_autocast():
                        self._read(step)
            if error is None and scope._companion is not None:
                with without_autocast():
                    scope._companion.read()
        finally:
            if error is None:
                scope.index += 1

    def _read(self, step: Step) -> None:
        scope = self._scope
        found: dict[int, list[Record]] = {}

        def read(probe: AbstractProbe) -> None:
            found[id(probe)] = list(probe.read(step))

        replaying = [probe for probe in self._due if self._replays(probe) and id(probe) not in self._failed]
        if replaying and step.start is not None:
            self._replay(step, [probe for probe in replaying if probe.REPLAYS], read)
        step.gradients_scaled = step.scale != 1 and _still_scaled(scope.scaler, scope.optimizers, step.scale)
        for probe in self._due:
            if not probe.REPLAYS:
                self._try(probe, read, probe)
        # In the order of the probes; what a probe had yielded before it failed is not kept.
        scope._take([record for probe in self._due for record in found.get(id(probe), ())])
        for probe, error in self._failed.values():
            scope._switch_off(probe, error)

    def _replay(self, step: Step, replaying: Sequence[AbstractProbe], read: Callable[[AbstractProbe], None]) -> None:
        start = step.start
        assert start is not None
        replay = Replay(self._model, self._scope.loss_fn, self._evaluated(), start, own=self._own, scale=step.scale)
        with eagerly(self._compiled), replay.opened():
            step.begin_replay(replay)
            if self._compiled and (listening := step.listening()):
                step.attach()
                try:
                    replay.origin()
                except Exception as error:
                    for probe in listening:
                        self._fail(probe, error)
                step.detach()
            for probe in replaying:
                self._try(probe, read, probe)
            step.begin_replay(None)

    def _evaluated(self) -> Any:
        if not self._pieces:
            return self._batch
        alike = 1 / len(self._pieces)
        return [Piece(batch, alike if share is None else share, rng) for batch, share, rng in self._pieces]

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


def _still_scaled(scaler: "GradScaler | None", optimizers: Sequence[Optimizer], scale: float) -> bool:
    """Whether gradients carry the loss scale as the step ends, where no optimizer has made an update.

    A scaler that has skipped an update has unscaled before, and says so by its state or by a new scale.
    """
    if scaler is None or float(scaler.get_scale()) != scale:
        return False
    states = getattr(scaler, "_per_optimizer_states", {})
    stages = [states[id(optimizer)]["stage"] for optimizer in optimizers if id(optimizer) in states]
    return all(getattr(stage, "name", "READY") == "READY" for stage in stages)


def _once(act: Callable[[], None]) -> Callable[..., None]:
    called = False

    def hook(*_: Any) -> None:
        nonlocal called
        if not called:
            called = True
            act()

    return hook
