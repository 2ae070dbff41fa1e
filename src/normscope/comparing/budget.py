"""Fit a comparison into the time that it may take."""

import functools
import math
import re
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from normscope._errors import UsageError
from normscope.comparing.arms import Arm
from normscope.comparing.evaluation import evaluate
from normscope.comparing.plan import EVALUATIONS, Plan, Wish
from normscope.comparing.rates import optimizer_of
from normscope.comparing.reuse import is_watched
from normscope.comparing.training import Steps
from normscope.modules.rng import streams_kept
from normscope.modules.settings import settings_kept
from normscope.probes import Recorder
from normscope.records.numbers import counted
from normscope.running import Executor, Work, one_thread
from normscope.stats.decide import FEWEST_SEEDS
from normscope.usercode import users_code

_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SHARE = 0.85  # of the time that is left is planned: what else runs on the machine may slow the runs down
_FEWEST_STEPS = 30
_GAP = 9  # evaluations that the shares of the gap take


def seconds_of(budget: str | float) -> float:
    """Read a budget: seconds, or text such as ``"90s"``, ``"20min"``, ``"1.5h"``.

    Raises:
        UsageError: It is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(budget).lower())
    if not found or found[2] not in _UNITS or float(found[1]) <= 0:
        raise UsageError(f"a budget is a time such as 90s, 20min or 1.5h, not {budget!r}")
    return float(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True)
class Pilot:
    """How long everything takes in one arm.

    Attributes:
        making: Seconds to make the set-up.
        step: Seconds of a training step.
        evaluation: Seconds of an evaluation.
        readings: By the code of a probe, seconds that a reading adds to a step.
    """

    making: float
    step: float
    evaluation: float
    readings: Mapping[str, float]

    def seconds(self, plan: Plan) -> float:
        """Return how long one run of the arm takes under a plan."""
        runs = self.making + plan.steps * self.step + (EVALUATIONS + 1 + _GAP) * self.evaluation
        return runs + sum(plan.times(code) * self.readings.get(code, 0.0) for code in plan.readings)

    def scaled(self, factor: float) -> "Pilot":
        """Return a run that takes so much longer, or shorter, in all parts."""
        readings = {code: factor * seconds for code, seconds in self.readings.items()}
        return Pilot(factor * self.making, factor * self.step, factor * self.evaluation, readings)

    def plain_seconds(self, plan: Plan) -> float:
        """Return how long a run takes in which no probe is read."""
        return self.seconds(replace(plan, readings={}))


def pilot_of(arm: Arm, plan: Plan) -> Pilot:
    """Time the parts of a run of an arm: a few steps, an evaluation, and two readings of each probe.

    Raises:
        UsageError: The user's code raises.
    """
    began = time.perf_counter()
    case, _ = arm.make(0)
    making = time.perf_counter() - began
    steps = Steps(case, 0)
    steps.step()
    step = statistics.median(_timed(steps) for _ in range(5))  # what else runs slows the runs down, too
    began = time.perf_counter()
    list(evaluate(case, plan.batches, "", 0))
    evaluation = max(time.perf_counter() - began, step * plan.batches / 3)  # without evaluation data the gap is taken
    readings = {}
    for probe in plan.probes() if is_watched(arm.surgery, 1.0) else []:
        probe.every = 1
        recorder = Recorder(
            case.model, case.loss_fn, optimizer_of(case), [probe], every=1, also=case.also, tells_cost=False
        )
        took = [_timed(steps, recorder.step) for _ in range(2)]  # the first reading also looks around
        readings[probe.CODE] = max(0.0, min(took) - step)
    return Pilot(making, step, evaluation, readings)


def fitted(
    plan: Plan,
    arms: Sequence[Arm],
    wish: Wish,
    executor: Executor,
    workers: int,
    *,
    began: float,
    spare: str = "",
    gpus: int = 0,
) -> Plan:
    """Return the fullest plan that fits into a budget; the arms are timed for it.

    An arm that the runs may turn out to need counts half: with it the comparison takes a little longer than planned,
    and without it a little less.

    Args:
        plan: What would be run without a budget.
        arms: The arms.
        wish: Its budget, and whether it leaves steps and seeds open.
        executor: Where the arms will be run.
        workers: How many runs go at a time.
        began: When the comparison began, by ``time.perf_counter``.
        spare: Name of the arm that is like one that may be added; empty if none may.
        gpus: GPUs that a run needs.

    Raises:
        UsageError: Not even the least fits.
    """
    budget = wish.budget or math.inf
    pilots = _pilots(arms, plan, executor, workers, gpus)
    pilots += [pilot.scaled(0.5) for arm, pilot in zip(arms, pilots, strict=True) if arm.name == spare]
    spent = time.perf_counter() - began
    found = fullest(plan, pilots, _SHARE * (budget - spent), workers, free=(wish.steps is None, wish.seeds is None))
    if expected(found, pilots, workers) > _SHARE * (budget - spent):
        wanted, count = expected(found, pilots, workers) / _SHARE + spent, counted(workers, "worker")
        raise UsageError(f"a budget of {budget:g} s is too short: at least {wanted:.0f} s are needed with {count}")
    return replace(found, left_out=(*plan.left_out, *_left_out(plan, found)))


def _pilots(arms: Sequence[Arm], plan: Plan, executor: Executor, workers: int, gpus: int) -> list[Pilot]:
    """Time all arms in the processes that will run them, which start for it, and slow each other down as they will.

    Of several times of an arm the longest counts.
    """
    tasks = range(len(arms) * (math.ceil(workers / len(arms)) if workers > 1 else 1))
    found: list[list[Pilot]] = [[] for _ in arms]
    work = Work(functools.partial(_pilot, arms, plan), lambda task: f"a trial of arm {arms[task % len(arms)].name!r}")
    for task, pilot in executor.run(work, tasks, gpus=gpus):
        found[task % len(arms)].append(pilot)
    return [max(pilots, key=lambda pilot: pilot.seconds(plan)) for pilots in found]


def _pilot(arms: Sequence[Arm], plan: Plan, task: int) -> tuple[int, Pilot]:
    """Time one arm on one thread; leave the caller's global state as it was."""
    with streams_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the runs give them again
        for arm in arms:  # all, as the runs do: what an import sets is then the same in every worker
            arm.factory.load()
        with one_thread(), settings_kept():
            return task, pilot_of(arms[task % len(arms)], plan)


def fullest(plan: Plan, pilots: Sequence[Pilot], seconds: float, workers: int, *, free: tuple[bool, bool]) -> Plan:
    """Return the first of ever smaller plans that fits, or the smallest.

    Probes are read less often first, then steps are taken away, then seeds, down to three; then the costliest probes
    are left out, one after the other.

    Args:
        plan: What would be run without a budget.
        pilots: How long everything takes in each arm.
        seconds: How long the runs may take.
        workers: Processes.
        free: Whether steps and seeds may be chosen.
    """
    candidates = _candidates(plan, pilots, free)
    return next((each for each in candidates if expected(each, pilots, workers) <= seconds), candidates[-1])


def expected(plan: Plan, pilots: Sequence[Pilot], workers: int) -> float:
    """Return how long all runs of a plan take."""
    a_seed = sum(pilot.seconds(plan) + (len(plan.rates) - 1) * pilot.plain_seconds(plan) for pilot in pilots)
    timing = sum(pilot.making + 20 * pilot.step for pilot in pilots) if plan.seeds else 0.0
    runs = len(pilots) * plan.seeds * len(plan.rates)
    return plan.seeds * a_seed / min(workers, runs) + plan.seeds * timing


def _candidates(plan: Plan, pilots: Sequence[Pilot], free: tuple[bool, bool]) -> list[Plan]:
    """Return plans, each with less than the one before."""
    steps_free, seeds_free = free
    found = [plan, _rarer(plan)]
    if steps_free:
        while found[-1].steps > _FEWEST_STEPS:
            found.append(replace(found[-1], steps=max(_FEWEST_STEPS, int(found[-1].steps * 0.8))))
    if seeds_free:
        while found[-1].seeds > FEWEST_SEEDS:
            found.append(replace(found[-1], seeds=found[-1].seeds - 1))
    cost = {code: sum(pilot.readings.get(code, 0.0) for pilot in pilots) for code in plan.readings}
    for code in sorted(cost, key=cost.__getitem__, reverse=True):
        found.append(replace(found[-1], readings={k: v for k, v in found[-1].readings.items() if k != code}))
    return found


def _rarer(plan: Plan) -> Plan:
    """Return the plan with all probes that are read some times read at the ends only."""
    readings = {
        code: {**reading, "when": "ends" if reading["when"] == "some" else reading["when"]}
        for code, reading in plan.readings.items()
    }
    return replace(plan, readings=readings)


def _left_out(plan: Plan, chosen: Plan) -> tuple[str, ...]:
    """Say what was left out to keep the budget."""
    said = []
    if chosen.steps < plan.steps:
        said.append(f"{chosen.steps} steps a run instead of {plan.steps}")
    if chosen.seeds < plan.seeds:
        said.append(f"{chosen.seeds} seeds instead of {plan.seeds}")
    rarer = [code for code in chosen.readings if chosen.readings[code]["when"] != plan.readings[code]["when"]]
    if rarer:
        said.append(f"{', '.join(rarer)} read at the first and the last step only")
    gone = [code for code in plan.readings if code not in chosen.readings]
    if gone:
        said.append(f"{', '.join(gone)} not read")
    return (f"To keep the budget: {'; '.join(said)}.",) if said else ()


def _timed(steps: Steps, around: Callable[[Any], AbstractContextManager[Any]] | None = None) -> float:
    batch = steps.next_batch()
    began = time.perf_counter()
    with users_code("a training step"), torch.enable_grad(), nullcontext() if around is None else around(batch):
        steps.step(batch)
    return time.perf_counter() - began
