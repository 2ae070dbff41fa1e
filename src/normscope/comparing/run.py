"""Run a comparison: its cells over processes, each complete cell into the store."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import Module

from normscope._errors import UsageError
from normscope.comparing.arms import WORDS, Arm, Change, Factory, arms_of
from normscope.comparing.budget import fitted, seconds_of
from normscope.comparing.cells import Clock, Engine, engine_for, run_added, run_seeds
from normscope.comparing.comparison import Comparison
from normscope.comparing.configuration import chosen, configuration, known_plan, starts_of, within_schedule
from normscope.comparing.cost import has_cost, measure_cost, write_cost
from normscope.comparing.find import chosen_questions
from normscope.comparing.fingerprint import first_step
from normscope.comparing.folder import opened, with_added
from normscope.comparing.plan import Plan, Progress, Wish, plan_of
from normscope.modules.batches import tensors
from normscope.modules.rng import streams_kept
from normscope.modules.settings import settings_kept
from normscope.records import Store, driven
from normscope.records.addresses import place_of
from normscope.records.places import Place
from normscope.running import Executor, Shard, one_thread

Source = str | Callable[..., Any]


class NothingToCompareError(UsageError):
    """Fewer than two arms of a network can be made and differ.

    Args:
        refusals: Why arms cannot be made, or are no arms.
    """

    def __init__(self, refusals: Sequence[str]) -> None:
        self.refusals = tuple(refusals)
        super().__init__(
            f"nothing to compare: {'; '.join(refusals)}. Networks that you build yourself are compared by a name for "
            "each: one=train.py:make_one other=train.py:make_other"
        )


class ComparisonWarning(UserWarning):
    """Something about the arms that a reader of the comparison must know."""


def compare(
    source: Source | Mapping[str, Source],
    arms: Sequence[str] | Mapping[str, str | Change] | None = None,
    *,
    seeds: int | None = None,
    steps: int | None = None,
    rates: Sequence[float] = (1.0,),
    budget: str | float | None = None,
    questions: Sequence[str] | None = None,
    batches: int = 8,
    out: str | Path = "runs/compare",
    fresh: bool = False,
    workers: int | None = None,
    executor: str | Executor | None = None,
    shard: str | Shard | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare a network with its norms and without them, or with others, seed by seed, in the user's own training.

    Every arm of a seed begins from the same weights and sees the same batches. An interrupted run is taken up where it
    stopped; its records are the same, bit for bit, and do not depend on ``workers``, ``executor`` and ``shard``. Runs
    that lie in the folder serve every comparison of the same set-up: with other arms, rates, seeds and questions only
    what is missing is run.

    Args:
        source: A function that makes the training set-up anew at each call and returns what ``check`` takes, or
            ``"train.py:make_case"``. It is called under the seed, and given the seed if it has an argument of that
            name. Or several such functions by the name of the arm.
        arms: Names of ``surgery.ARMS``; or by the name of the arm such a name, or a function that changes the model in
            place (the set-up, if its argument is called ``case``). None for ``"own"`` and ``"none"``, with
            ``"rescaled"`` where the network does not learn without norms.
        seeds: Replicates, seeds 0 to ``seeds - 1``; 5 if left out. Fewer than 3 are described, not judged.
        steps: Training steps of a run; 200 if left out.
        rates: Factors of the learning rate, for each arm's own best.
        budget: Time that it may take, in seconds or as ``"20min"``: steps, seeds and probes are chosen to fit.
        questions: Codes of questions; all if None.
        batches: Batches of an evaluation, at most.
        out: Folder of the run.
        fresh: Whether a comparison of another set-up that lies in the folder is deleted.
        workers: Processes; None for one per core (one in all where the model is on an accelerator).
        executor: Where cells are run, as ``normscope.studies.run`` takes it.
        shard: ``"2/3"`` runs the second of three shares of the cells; it goes without a budget.
        progress: Called with what is done, how much of it is done, and how much there is.

    Returns:
        The comparison.

    Raises:
        UsageError: An arm cannot be made, the network has no norms, the user's code raises, or numbers make no sense.
        StoreError: The folder cannot be written, holds another comparison, or another process is at work on it.
        IncompleteRunError: Cells of other shards are missing.
    """
    began, place, made = time.perf_counter(), place_of(out), arms_of(_factories(source), arms)
    wish = Wish(steps, seeds, _several(rates), batches, None if budget is None else seconds_of(budget))
    plan = plan_of(chosen_questions(questions), wish)
    with engine_for(executor, workers, shard, wish.budget) as engine, _apart(made):
        return _compared(made, plan, wish, engine, place, progress, began=began, fresh=fresh)


def _compared(
    made: Sequence[Arm],
    plan: Plan,
    wish: Wish,
    engine: Engine,
    place: Place,
    progress: Progress | None,
    *,
    began: float,
    fresh: bool,
) -> Comparison:
    """Look at the arms before anything runs, then run them into a place."""
    seen = foresee(made, plan)
    engine = engine.on(seen.on_cpu)
    config = configuration(seen.arms, seen.starts, plan, wish)
    plan = known_plan(place.path, config) or _fitted(plan, seen, wish, engine, began)
    notes = [*seen.notes, *plan.left_out]
    for note in notes:
        warnings.warn(note, ComparisonWarning, stacklevel=3)
    place.prepare("--out")
    with driven(place, engine.shard):  # also while what lies there makes way
        store = opened(place.path, config | chosen(plan, wish, seen.reports, notes), fresh=fresh)
        return _run_all(store, seen.arms, plan, engine, progress, Clock(began, wish.budget))


@contextmanager
def _apart(arms: Sequence[Arm]) -> Iterator[None]:
    """Import the factories, and leave the process as it was at the end, whatever the user's code sets.

    The settings that a module makes where it is imported stay, as after any import: a later comparison does not import
    it again.
    """
    with streams_kept(), torch.inference_mode(False), torch.enable_grad():
        for arm in arms:
            if not arm.factory.is_in_file:
                arm.factory.load()
        with settings_kept():
            for arm in arms:
                arm.factory.load()
            yield


def _run_all(
    store: Store, arms: Sequence[Arm], plan: Plan, engine: Engine, progress: Progress | None, clock: Clock
) -> Comparison:
    """Run the arms, then the arm that they turn out to need, then time a step of each."""
    if _may_need_rescue(arms):
        clock = replace(clock, rescue=1 / len(arms))
    plan = replace(plan, seeds=run_seeds(store, arms, plan, engine, progress, clock))
    if rescued := _rescued(Comparison(store, seeds=plan.seeds), arms):
        arms = (*arms, rescued)
        run_added(store, rescued, plan, engine, progress)
        store = with_added(store, rescued.as_json())
    if "cost" in plan.questions and not has_cost(store.path, arms, plan):
        write_cost(store.path, measure_cost(arms, plan, progress))
    return Comparison(store, seeds=plan.seeds)


def _several(rates: Sequence[float] | float) -> tuple[float, ...]:
    return tuple(rates) if isinstance(rates, Iterable) else (rates,)


def _fitted(plan: Plan, seen: "Foreseen", wish: Wish, engine: Engine, began: float) -> Plan:
    """Return the plan, with no more steps than a schedule has, or the fullest that fits into the user's budget."""
    plan = within_schedule(plan, wish, seen.longest)
    if wish.budget is None:
        return plan
    spare = _may_need_rescue(seen.arms)
    options: dict[str, Any] = {"began": began, "spare": spare.name if spare else "", "gpus": engine.gpus}
    return fitted(plan, seen.arms, wish, engine.executor, engine.workers, **options)


class Foreseen(NamedTuple):
    """What is known of the arms before anything runs.

    Attributes:
        arms: Those that differ.
        reports: What was done to make each, as JSON values, by its name.
        notes: Sentences that a reader must know.
        on_cpu: Whether all models are on the CPU.
        starts: Digests of first training steps; none on an accelerator, where they may differ from run to run.
        longest: Steps after which a schedule ends.
    """

    arms: tuple[Arm, ...]
    reports: dict[str, Any]
    notes: list[str]
    on_cpu: bool
    starts: dict[str, str]
    longest: float


def foresee(arms: Sequence[Arm], plan: Plan) -> Foreseen:
    """Make every arm once and try a step of it, before anything runs.

    Raises:
        UsageError: An arm cannot be made, or no two of them differ.
    """
    kept: list[Arm] = []
    reports: dict[str, Any] = {}
    notes: list[str] = []
    models: list[Module] = []
    refusals = []
    for arm in arms:
        with one_thread(), settings_kept():
            case, report = arm.make(0, trial=True)
        if any(case.model is other for other in models):
            raise UsageError(
                f"{arm.factory.words} returned the same model twice: build the model, and what trains it, inside the "
                "function, for every arm begins anew"
            )
        models.append(case.model)
        if refusal := report.refuses():
            refusals.append(refusal)
            continue
        if not kept and "saturation" in plan.readings:
            notes += filter(None, [report.unheard()])
        kept.append(arm)
        reports[arm.name] = report.as_json()
        notes += filter(None, [report.incomplete()])
    if len(kept) < 2:
        raise NothingToCompareError(refusals)
    notes += [f"{refusal}: left out" for refusal in refusals]
    notes += filter(None, [_said_of_seeds(kept[0])])
    on_cpu = all(p.device.type == "cpu" for model in models for p in model.parameters())
    digests, longest = starts_of(kept)
    return Foreseen(tuple(kept), reports, notes, on_cpu, digests if on_cpu else {}, longest)


def _said_of_seeds(arm: Arm) -> str:
    """Say that seeds differ less than they should; empty if they begin from different weights."""
    if not _begins_alike(arm):
        return ""
    advice = "where the factory sets a seed itself, let it take an argument called seed"
    with one_thread(), settings_kept():
        if first_step(arm.make(0)[0], 0) == first_step(arm.make(1)[0], 1):
            return (
                "the first weights and the first step are the same at every seed, so the seeds may not differ at all, "
                f"and then nothing can be judged: {advice}, and let the loader shuffle"
            )
    return (
        "the first weights are the same at every seed, so the seeds differ in the order of batches and in what the "
        f"steps draw, no more: {advice}"
    )


def _begins_alike(arm: Arm) -> bool:
    """Say whether an arm begins from the same weights at two seeds."""
    found = []
    for seed in (0, 1):
        with one_thread(), settings_kept():
            found.append(arm.make(seed)[0])
    mine, theirs = (tensors([p.detach().clone() for p in case.model.parameters()]) for case in found)
    return len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))


def _rescued(found: Comparison, arms: Sequence[Arm]) -> Arm | None:
    """Return the arm with rescaled weights, where the network does not learn without its norms."""
    none = _may_need_rescue(arms)
    own = next((arm for arm in arms if arm.surgery == "own" and arm.change is None), None)
    if none is None or own is None or found.learns(none.name) or not found.learns(own.name):
        return None
    return replace(none, name="rescaled", words=WORDS["rescaled"], surgery="rescaled")


def _may_need_rescue(arms: Sequence[Arm]) -> Arm | None:
    """Return the arm without norms beside the network as it is, where none has rescaled weights in their place."""
    by_surgery = {arm.surgery: arm for arm in arms if arm.change is None}
    if not {"own", "none"} <= by_surgery.keys() or "rescaled" in by_surgery:
        return None
    return by_surgery["none"]


def _factories(source: Source | Mapping[str, Source]) -> dict[str, Factory]:
    if isinstance(source, Mapping):
        return {name: Factory(each) for name, each in source.items()}
    if isinstance(source, str) or callable(source):
        return {"": Factory(source)}
    raise UsageError(
        f"compare takes a function that makes the set-up anew, or FILE:FACTORY, not an object of type "
        f"{type(source).__name__}"
    )
