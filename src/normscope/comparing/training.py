"""One run of a comparison: an arm at a seed and a learning rate, trained as the user trains, watched and evaluated."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from normscope._errors import UsageError
from normscope.comparing.arms import Arm
from normscope.comparing.chains import Chains
from normscope.comparing.described import chain_records, model_records, order_records, weight_norm
from normscope.comparing.evaluation import evaluate, gap_records
from normscope.comparing.plan import Plan
from normscope.comparing.rates import ended, optimizer_of, scale_rates
from normscope.comparing.reuse import is_watched
from normscope.evidence import Case
from normscope.modules.backward import on_backward
from normscope.modules.rng import RngState, seed_streams
from normscope.probes import Recorder
from normscope.records import Cell, Record
from normscope.usercode import users_code

_DATA, _STEPS = 1, 2  # of the streams from which a seed's batches are drawn, and its steps draw


def run_cell(arm: Arm, plan: Plan, cell: Cell) -> Iterator[Record]:
    """Train an arm, and yield what was seen. All random streams are set by the seed.

    Every arm of a seed begins from the same weights, and is given the same batches, whatever the arms draw.

    Args:
        arm: The arm.
        plan: What is run.
        cell: Its seed and its point, ``{"rate": ...}``.

    Raises:
        UsageError: The user's code raises, or cannot be trained.
    """
    case, _ = arm.make(cell.seed)
    rate = float(cell.point["rate"])
    if rate != 1.0:
        scale_rates(case, rate)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield from _records(case, plan, cell, watched=is_watched(arm.surgery, rate))
    for text in dict.fromkeys(str(each.message) for each in caught if _is_ours(each)):
        yield Record(cell.id, 0, "note", "", text, 1.0)


def _is_ours(warning: warnings.WarningMessage) -> bool:
    return str(warning.category.__module__).startswith("normscope")


class Steps:
    """The training steps of a set-up, on the batches of a seed.

    Args:
        case: The set-up; it is trained.
        seed: Of the batches, and of what the steps draw.

    Raises:
        UsageError: Nothing updates the model.
    """

    def __init__(self, case: Case, seed: int) -> None:
        if case.step is None and case.optimizer is None:
            raise UsageError("a comparison trains: give the set-up an optimizer, or a step(model, batch) that updates")
        self.case = case
        self._batches = _Batches(case, seed)
        self._heard: list[Tensor] = []
        seed_streams(seed, _STEPS)

    def next_batch(self) -> Any:
        """Return the next batch; the streams that the steps draw from stay where they are."""
        return self._batches.next()

    def step(self, batch: Any = None) -> float:
        """Make a training step and return its loss.

        Args:
            batch: The batch; the next one if None.

        Raises:
            UsageError: The step returns no loss, and calls backward on no scalar.
        """
        with torch.enable_grad():  # a factory, or who calls it, may have switched gradients off
            return self._step(self.next_batch() if batch is None else batch)

    def _step(self, batch: Any) -> float:
        case = self.case
        if case.step is None:
            assert case.optimizer is not None
            case.optimizer.zero_grad()
            loss = case.loss_fn(case.model, batch)
            loss.backward()
            case.optimizer.step()
            return float(loss.detach())
        self._heard.clear()
        handle = on_backward(lambda loss: self._heard.append(loss.clone()))
        try:
            given = case.step(case.model, batch)
        finally:
            handle.remove()
        if isinstance(given, Tensor) and given.numel() == 1:
            return float(given.detach())
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            return float(given)
        if not self._heard:
            raise UsageError("the step calls backward() on no scalar and returns no loss: let step return the loss")
        return float(sum(loss.reshape(()) for loss in self._heard))


def _records(case: Case, plan: Plan, cell: Cell, *, watched: bool) -> Iterator[Record]:
    """Train, and yield the losses, the evaluations, and what the probes read."""
    steps = Steps(case, cell.seed)
    probes = plan.probes() if watched else []
    options: dict[str, Any] = {"cell": cell.id, "also": case.also, "tells_cost": False}
    recorder = Recorder(case.model, case.loss_fn, optimizer_of(case), probes, every=plan.steps, **options)
    evaluated = plan.evaluated()
    yield from model_records(case.model, cell.id) if watched else ()
    yield from evaluate(case, plan.batches, cell.id, 0)
    if not any(module.training for module in case.model.modules()):
        said = "the model is handed over in evaluation mode, and so it is trained: call model.train() in the factory"
        yield Record(cell.id, 0, "note", "", said, 1.0)
    before = [parameter.detach().clone() for parameter in case.model.parameters()]
    chains = Chains(case.model) if watched and "gradient_flow" in plan.readings else None
    diverged = False
    for index in range(plan.steps):
        batch = steps.next_batch()
        if watched and "descent" in plan.readings and index % plan.every("descent") == 0:
            yield weight_norm(case.model, cell.id, index)
        doing = f"training step {index} of the arm {cell.arm} (seed {cell.seed})"
        first = chains if chains is not None and index == 0 else nullcontext()
        told = _schedule_told(case, index, plan.steps)
        with told, users_code(doing), torch.enable_grad(), recorder.step(batch), first:
            loss = steps.step(batch)
        yield from chain_records(chains, batch, cell.id) if chains is not None and index == 0 else ()
        yield Record(cell.id, index, "training", "", "loss", loss)
        diverged = not math.isfinite(loss)
        if diverged:
            break
        if index + 1 in evaluated:
            yield from evaluate(case, plan.batches, cell.id, index + 1)
    if before and not diverged and all(map(torch.equal, before, case.model.parameters())):
        raise UsageError(
            f"{plan.steps} training steps of the arm {cell.arm} move no parameter of the model: a step(model, batch) "
            "makes the whole step: zero the gradients, run the loss and its backward pass, and update"
        )
    yield Record(cell.id, plan.steps, "training", "", "diverged", float(diverged))
    read = recorder.drain()
    yield from read
    yield from order_records(read, cell.id)
    for code, reason in recorder.not_read.items():
        yield Record(cell.id, 0, "note", "", f"{code} read nothing: {reason}", 1.0)
    if not diverged:
        yield from gap_records(case, plan.batches, cell.id, plan.steps)


@contextmanager
def _schedule_told(case: Case, step: int, steps: int) -> Iterator[None]:
    """Say plainly that a schedule has ended, where that is why a training step raised."""
    try:
        yield
    except UsageError as error:
        schedule = ended(case)
        if schedule is None:
            raise
        raise UsageError(
            f"the schedule of the set-up (OneCycleLR of {schedule.total_steps} steps) ends in training step {step} of "
            f"{steps}: {f'give --steps {step}, or ' if step else ''}make the schedule longer"
        ) from error.__cause__


class _Batches:
    """The batches of a seed, epoch after epoch, drawn from streams of their own: the same in every arm."""

    def __init__(self, case: Case, seed: int) -> None:
        self._case, self._seed, self._epoch = case, seed, 0
        self._batches: Iterator[Any] | None = None
        self._streams: RngState | None = None

    def next(self) -> Any:
        """Return the next batch; the streams of the steps stay where they are."""
        outside = RngState()
        try:
            if self._streams is not None:
                self._streams.restore()
            batch = self._taken()
            self._streams = RngState()
        finally:
            outside.restore()
        return batch

    def _taken(self) -> Any:
        for _ in range(2):
            if self._batches is None:
                seed_streams(self._seed, _DATA, self._epoch)
                with users_code("iterating the loader"):
                    self._batches = iter(self._case.loader)
            with users_code("getting a batch of the loader"):
                batch = next(self._batches, _END)
            if batch is not _END:
                return batch
            self._batches, self._epoch = None, self._epoch + 1
        raise UsageError("the loader gives no batch: it must begin anew each time it is iterated, as a list does")


_END = object()
