"""One due training step: hooks before it, probes that read after it, and their failures kept apart from the user's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from normscope.modules.autocast import without_autocast
from normscope.modules.batches import Piece
from normscope.modules.rng import RngState
from normscope.modules.wrapped import calls_eagerly, eagerly, is_compiled, unwrap
from normscope.probes._probe import AbstractProbe
from normscope.probes._replay import LossFn, Replay
from normscope.probes._start_state import Layout, StartState
from normscope.probes._step import Step
from normscope.probes._users_pass import UsersPass
from normscope.records import Record

if TYPE_CHECKING:
    from torch.amp import GradScaler


@dataclass(slots=True)
class TrainingLoop:
    """The parts of a training loop, and what earlier steps have shown about them.

    Attributes:
        model: The model as the loop calls it, in its wrappers.
        loss_fn: The loss that the loop trains on.
        optimizers: The optimizers of the loop.
        scaler: The gradient scaler of the loop, if any.
        layout: Where the parameters lie in flat buffers; None before the first step that needs it.
        proven: Whether the user's own gradient may serve as the step's, by modes and parameters (``UsersPass``).
    """

    model: Module
    loss_fn: LossFn
    optimizers: Sequence[Optimizer]
    scaler: "GradScaler | None" = None
    layout: Layout | None = None
    proven: dict[tuple[Any, ...], bool] = field(default_factory=dict)


class ProbedStep:
    """One step at which probes are due.

    Args:
        loop: The training loop, shared by its steps.
        due: The probes that read at this step.
        batch: What the loss function takes; passed over once ``add_micro_batch`` was called.
        cell: Name under which the records are filed.
        index: Number of the step.

    Attributes:
        failures: Each probe that raised, with its exception. It reads no further, and its records are left out.
    """

    def __init__(self, loop: TrainingLoop, due: Sequence[AbstractProbe], batch: Any, cell: str, index: int) -> None:
        self._loop, self._due, self._batch = loop, due, batch
        self._model, self._compiled = unwrap(loop.model), is_compiled(loop.model)
        scaler = loop.scaler
        scale = float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0
        self._step = Step(cell, index, self._model, loop.optimizers, self._fail, scale=scale)
        self._micro_batches: list[tuple[Any, float | None, RngState]] = []
        self._users_pass: UsersPass | None = None
        self.failures: dict[int, tuple[AbstractProbe, Exception]] = {}

    def begin(self) -> None:
        """Set the hooks."""
        step = self._step
        for probe in self._due:
            self._try(probe, probe.watch, step)
        replaying = [probe for probe in self._due if self._replays(probe)]
        if replaying:
            try:
                self._note_start()
            except Exception as error:
                for probe in replaying:
                    self._fail(probe, error)
        if not self._compiled:
            step.attach()
        for optimizer in self._loop.optimizers:
            if hasattr(optimizer, "register_step_pre_hook"):
                step.keep(optimizer.register_step_pre_hook(self._before_update))

    def _replays(self, probe: AbstractProbe) -> bool:
        """Whether a probe needs the loss evaluated again; a probe that listens to a compiled module does."""
        return probe.REPLAYS or (self._compiled and probe in self._step.listening())

    def _note_start(self) -> None:
        loop, step = self._loop, self._step
        if loop.layout is None or not loop.layout.fits(self._model):
            loop.layout = Layout(self._model)
        start = step.start = StartState(self._model, loop.layout)
        if calls_eagerly(loop.model):
            step.keep(loop.model.register_forward_pre_hook(_once(start.note_conditions)))
        if not self._compiled:
            self._users_pass = UsersPass(self._model, start, step.scale, loop.proven)
            self._users_pass.attach(step.keep)

    def _before_update(self, optimizer: Optimizer, *_: Any) -> None:
        step = self._step
        # A scaler has unscaled the gradients by now, unless the optimizer does it itself, in one kernel.
        step.gradients_scaled = step.scale != 1 and getattr(optimizer, "grad_scale", None) is not None
        parameters = {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}
        with torch.no_grad(), without_autocast():
            for probe in self._due:
                self._try(probe, probe.before_update, step, parameters)
        step.gradients_scaled = step.scale != 1

    def add_micro_batch(self, batch: Any, share: float | None) -> None:
        """Take one of several batches, with the random streams as they are now."""
        self._micro_batches.append((batch, share, RngState(self._model)))

    def end(self) -> None:
        """Remove the hooks."""
        self._step.detach()

    def read(self) -> list[Record]:
        """Have the probes read; return their records, in the order of the probes."""
        step = self._step
        records: dict[int, list[Record]] = {}

        def read(probe: AbstractProbe) -> None:
            records[id(probe)] = list(probe.read(step))

        replaying = [probe for probe in self._due if self._replays(probe) and id(probe) not in self.failures]
        if replaying and step.start is not None:
            self._replay(step.start, [probe for probe in replaying if probe.REPLAYS], read)
        step.gradients_scaled = step.scale != 1 and _still_scaled(self._loop.scaler, self._loop.optimizers, step.scale)
        for probe in self._due:
            if not probe.REPLAYS:
                self._try(probe, read, probe)
        step.release()
        return [record for probe in self._due for record in records.get(id(probe), ())]

    def _replay(
        self, start: StartState, replaying: Sequence[AbstractProbe], read: Callable[[AbstractProbe], None]
    ) -> None:
        step = self._step
        replay = Replay(
            self._model,
            self._loop.loss_fn,
            self._evaluated_batch(),
            start,
            origin_source=self._users_pass,
            scale=step.scale,
        )
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

    def _evaluated_batch(self) -> Any:
        if not self._micro_batches:
            return self._batch
        alike = 1 / len(self._micro_batches)
        return [Piece(batch, alike if share is None else share, rng) for batch, share, rng in self._micro_batches]

    def _try(self, probe: AbstractProbe, act: Callable[..., None], *args: Any) -> None:
        if id(probe) in self.failures:
            return
        try:
            act(*args)
        except Exception as error:
            self._fail(probe, error)

    def _fail(self, probe: Any, error: Exception) -> None:
        """Remember a failure; it is reported when the step ends, so that no warning breaks the user's pass."""
        self.failures.setdefault(id(probe), (probe, error))


def _still_scaled(scaler: "GradScaler | None", optimizers: Sequence[Optimizer], scale: float) -> bool:
    """Whether gradients carry the loss scale as the step ends, if no optimizer has made an update.

    A scaler that has skipped an update has unscaled the gradients before; its state or a new scale shows it.
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
