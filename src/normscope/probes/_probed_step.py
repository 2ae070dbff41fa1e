"""One due training step: hooks before it, probes that read after it, and their failures kept apart from the user's."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.modules.autocast import beside
from normscope.modules.batches import Piece
from normscope.modules.processes import OutOfStepError
from normscope.modules.rng import RngState
from normscope.modules.shards import SHARDED, sharded
from normscope.modules.wrapped import (
    calls_step_hooks,
    eagerly,
    is_compiled,
    rank_of_many,
    scaler_that_steps,
    unwrap,
)
from normscope.probes._in_step import InStep
from normscope.probes._probe import AbstractProbe
from normscope.probes._replay import Replay
from normscope.probes._start_state import Layout, StartState
from normscope.probes._step import Step
from normscope.probes._training_loop import TraceError, TrainingLoop
from normscope.probes._users_pass import UsersPass
from normscope.probes._wiring import Wiring
from normscope.records import Record
from normscope.usercode import described

_SCALER_FOUND = (
    "a gradient scaler steps the optimizer, of which the scope was not told, so gradients and loss of this step carry "
    "an unknown scale; from the next reading on it is taken out (give scaler= to read the first step, too)"
)


class ProbedStep:
    """One step at which probes are due.

    Args:
        loop: The training loop, shared by its steps.
        due: The probes that read at this step.
        batches: What the loss function takes, in a list; passed over once ``add_micro_batch`` was called. Empty where
            the batch is not known as the step begins.
        cell: Name under which the records are filed.
        index: Number of the step.

    Attributes:
        failures: Each probe that raised, with its exception. It reads no further, and its records are left out.
        nothing: Codes of probes that found nothing to read, each with the reason.
        values_read: Codes of probes that have values.
        wiring_causes: What does not fit between the loop and the scope, in words.
        no_batch: Why the batch of the step is not known; empty if it is.
        left_out: Probes that did not read at this step, with the reason.
    """

    def __init__(
        self, loop: TrainingLoop, due: Sequence[AbstractProbe], batches: list[Any], cell: str, index: int
    ) -> None:
        self._loop, self._due, self._batches = loop, due, batches
        self._model, self._compiled = unwrap(loop.model), is_compiled(loop.model)
        scaler = loop.scaler
        scale = float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0
        self._step = Step(cell, index, self._model, loop.optimizers, self._fail, scale=scale)
        self._micro_batches: list[tuple[Any, float | None, RngState]] = []
        self._users_pass: UsersPass | None = None
        self._wiring = None if loop.wired else Wiring(self._model, self._compiled, scale)
        self._in_step, self._replaying = InStep(loop.processes), [probe for probe in due if probe.replays]
        self.failures: dict[int, tuple[AbstractProbe, Exception]] = {}
        self.nothing: dict[str, str] = {}
        self.values_read: set[str] = set()
        self.wiring_causes: list[str] = []
        self.no_batch, self._scaler_was_found = "", False
        self.left_out: tuple[Sequence[AbstractProbe], str] | None = None

    def begin(self) -> None:
        """Set the hooks."""
        step = self._step
        for probe in self._due:
            self._try(probe, probe.watch, step)
        replaying = self._all_replaying()
        if replaying:
            try:
                self._note_start()
            except Exception as error:
                for probe in replaying:
                    self._fail(probe, error)
        if not self._compiled:
            step.attach()
        step.attach_to_backward()
        if self._wiring is not None:
            self._wiring.attach(step.keep)
        for optimizer in self._loop.optimizers:
            if calls_step_hooks(optimizer):
                step.keep(optimizer.register_step_pre_hook(self.before_update))
                step.keep(optimizer.register_step_post_hook(self._after_update))

    def _all_replaying(self) -> list[AbstractProbe]:
        """Return the probes that need the loss evaluated again; a probe that listens to a compiled module does."""
        heard = self._step.listening() if self._compiled else ()
        return [probe for probe in self._due if probe in self._replaying or probe in heard]

    @property
    def has_foreign_code(self) -> bool:
        """Whether reading runs code that is not of this package: the loss, or a probe of the user's own."""
        return bool(self._all_replaying()) or not all(type(p).__module__.startswith("normscope.") for p in self._due)

    def _note_start(self) -> None:
        loop, step = self._loop, self._step
        if rank_of_many() is not None and sharded(self._model):
            raise UsageError(SHARDED)
        if loop.layout is None or not loop.layout.fits(self._model):
            loop.layout = Layout(self._model)
        start = step.start = StartState(self._model, loop.layout, loop.reach)
        start.conditions.listen(loop.model, step.keep, loop.loss_autocasts)
        if not self._compiled:
            self._users_pass = UsersPass(self._model, start, step.scale, loop.proven)
            self._users_pass.attach(step.keep)
            if self._wiring is not None:
                self._wiring.compares = True

    def before_update(self, optimizer: Optimizer, *_: Any) -> None:
        """Have the probes read the gradients that an optimizer is about to use."""
        step = self._step
        if self._loop.scaler is None and (scaler := scaler_that_steps()) is not None and scaler.is_enabled():
            self._loop.scaler, self._scaler_was_found = scaler, True
        # A scaler has unscaled the gradients by now, unless the optimizer does it itself, in one kernel.
        step.gradients_scaled = step.scale != 1 and getattr(optimizer, "grad_scale", None) is not None
        parameters = {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}
        if self._wiring is not None:
            held = {key: step.gradient(parameter) for key, parameter in parameters.items()}
            self._wiring.note_update({key: gradient for key, gradient in held.items() if gradient is not None})
        for probe in self._due:
            if type(probe).before_update is not AbstractProbe.before_update:
                self._try(probe, beside, probe.before_update, step, parameters)
        step.gradients_scaled = step.scale != 1
        step.updating = True

    def _after_update(self, *_: Any) -> None:
        self._step.updating = False

    def adopt(self, optimizer: Optimizer) -> None:
        """Take up an optimizer that is found as it makes its first update."""
        self._step.take_optimizers(self._loop.optimizers)
        self.before_update(optimizer)
        self._step.updating = False  # torch has no hook of the end of this update

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
        if self._scaler_was_found:
            self.left_out = self._due, _SCALER_FOUND
            step.release()
            return []

        def read(probe: AbstractProbe) -> None:
            records[id(probe)] = values = list(probe.read(step))
            if strange := [kind for kind in {*map(type, values)} if not issubclass(kind, Record)]:
                del records[id(probe)]
                raise TypeError(f"read() yields a {strange[0].__name__}, and only records can be kept")
            if values:
                self.values_read.add(probe.CODE)
            else:
                self.nothing[probe.CODE] = f"{probe.NOTHING} (step {step.index})"

        if self._wiring is not None:
            self._loop.wired = True
            self.wiring_causes = self._wiring.causes(self._loop.optimizers)
        if rank_of_many() is not None:
            self._share_failures()
        replaying = [probe for probe in self._all_replaying() if id(probe) not in self.failures]
        if replaying and (why_not := self._why_no_replay()):
            refused = UsageError(why_not)
            if self.no_batch:
                self.left_out = replaying, why_not
            for probe in () if self.no_batch else replaying:
                self._fail(probe, refused)
        elif replaying and step.start is not None:
            self._replay(step.start, [probe for probe in replaying if probe in self._replaying], read)
        step.gradients_scaled = step.scale != 1 and self._loop.is_still_scaled(step.scale)
        for probe in self._due:
            if probe not in self._replaying:
                self._try(probe, read, probe)
        step.release()
        self.values_read -= {probe.CODE for probe, _ in self.failures.values()}
        sound = [probe for probe in self._due if id(probe) not in self.failures]
        return [record for probe in sound for record in records.get(id(probe), ())]

    def _replay(
        self, start: StartState, replaying: Sequence[AbstractProbe], read: Callable[[AbstractProbe], None]
    ) -> None:
        step = self._step
        assert self._loop.loss_fn is not None
        replay = Replay(
            self._model,
            self._loop.loss_fn,
            self._evaluated_batch(),
            start,
            origin_source=self._users_pass,
            scale=step.scale,
            processes=self._in_step.processes,
        )
        try:
            self._read_replayed(replay, replaying, read)
        except Exception as error:  # what the loss reaches cannot be kept, or not be put back
            for probe in replaying:
                self._fail(probe, error)
        if self._loop.reach.left:
            left = TraceError(self._loop.reach.left)
            for probe in self._all_replaying():
                self.failures[id(probe)] = (probe, left)

    def _read_replayed(
        self, replay: Replay, replaying: Sequence[AbstractProbe], read: Callable[[AbstractProbe], None]
    ) -> None:
        step = self._step
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
                self._try(probe, self._in_step.run, partial(read, probe))
            if self._wiring is not None and replaying and not self.wiring_causes and self._in_step.processes is None:
                self._prove_gradient(replay)
            step.begin_replay(None)

    def _why_no_replay(self) -> str:
        """Say why the loss cannot be evaluated again; empty if it can."""
        if self._loop.loss_fn is None:
            return "a compiled model is read by an eager pass of the loss, and the scope was given no loss_fn"
        return "" if self._batches or (self._micro_batches and not self.no_batch) else self.no_batch

    def _prove_gradient(self, replay: Replay) -> None:
        """Compare the gradient of the loop with that of ``loss_fn``."""
        users = None if self._users_pass is None else self._users_pass.received()
        if users is None:
            return
        try:
            assert self._wiring is not None
            replay.start.conditions.set_modes()  # a probe may have left other modes
            apart = self._wiring.gradients_apart(users, replay.start.gathered, replay.origin().gradient)
        except Exception as error:
            if any(id(probe) not in self.failures for probe in self._all_replaying()):
                # Where all of them failed, they tell it by their names.
                self.wiring_causes.append(f"loss_fn failed as it was evaluated again: {described(error)}")
            return
        if apart:
            self.wiring_causes.append(apart)

    def _evaluated_batch(self) -> Any:
        if not self._micro_batches:
            return self._batches[0]
        alike = 1 / len(self._micro_batches)
        return [Piece(batch, alike if share is None else share, rng) for batch, share, rng in self._micro_batches]

    def _try(self, probe: AbstractProbe, act: Callable[..., None], *args: Any) -> None:
        if id(probe) in self.failures:
            return
        try:
            act(*args)
        except Exception as error:
            self._fail(probe, error)

    def _share_failures(self) -> None:
        """Where processes must keep in step, have a probe that has failed in one of them fail in all."""
        failed = [id(probe) in self.failures for probe in self._due]
        error = OutOfStepError("the same probe has failed in another process")
        try:
            failed = self._in_step.failed_anywhere(
                self._model, self._step.start, failed, replays=bool(self._all_replaying())
            )
        except RuntimeError as silence:
            failed, error = [True] * len(failed), OutOfStepError(f"the others do not answer: {described(silence)}")
        self._loop.processes = self._in_step.known
        for probe, elsewhere in zip(self._due, failed, strict=True):
            if elsewhere:
                self._fail(probe, error)

    def _fail(self, probe: Any, error: Exception) -> None:
        """Remember a failure; it is reported when the step ends, so that no warning breaks the user's pass."""
        self.failures.setdefault(id(probe), (probe, error))
