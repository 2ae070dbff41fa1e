"""The configuration of a comparison: what was asked for, of which set-ups, and what was made of it."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from normscope._errors import UsageError
from normscope.comparing.arms import Arm
from normscope.comparing.fingerprint import first_step
from normscope.comparing.folder import why_another
from normscope.comparing.plan import Plan, Wish
from normscope.comparing.rates import schedules_that_end
from normscope.comparing.reuse import CODE
from normscope.modules.settings import settings_kept
from normscope.records import Store, provenance
from normscope.records.addresses import place_of
from normscope.records.json import canonical_form
from normscope.running import one_thread

_FEWEST_STEPS = 2


def configuration(arms: Sequence[Arm], starts: Mapping[str, str], plan: Plan, wish: Wish) -> dict[str, Any]:
    """Return what was asked for and of which set-ups, without the plan that is made of it.

    Args:
        arms: The arms.
        starts: Digests of first steps, as of ``starts_of``.
        plan: What would be run without a budget.
        wish: What the user asks for.
    """
    texts = {arm.factory.words: hashlib.sha256(arm.factory.text().encode()).hexdigest()[:16] for arm in arms}
    return {
        "kind": CODE,
        "arms": [arm.as_json() for arm in arms],
        "source": texts,
        "start": dict(starts),
        "asked": wish.as_json() | {"rates": list(plan.rates), "questions": list(plan.questions)},
        # Records of two versions are not replicates of one thing: such a run is refused, not continued.
        "versions": {name: provenance.version(name) for name in ("normscope", "torch")},
    }


def chosen(plan: Plan, wish: Wish, reports: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """Return what the plan adds to the configuration; without a budget more seeds can be run later."""
    seeds = None if wish.budget is None else plan.seeds
    return {"plan": plan.as_json(), "reports": dict(reports), "notes": list(notes), "seeds": seeds}


class Starts(NamedTuple):
    """What the first training step of each set-up tells.

    Attributes:
        digests: Of the step at seed 0, for every factory and every change of the user's. Arms that surgery makes of one
            factory have one digest: that of the network as the factory makes it.
        longest: Steps after which a schedule that is stepped in every training step ends; infinite where none does.
    """

    digests: dict[str, str]
    longest: float


def starts_of(arms: Sequence[Arm]) -> Starts:
    """Make the first training step of every set-up.

    Raises:
        UsageError: The user's code raises.
    """
    found, longest = {}, math.inf
    for arm in arms:
        name = arm.factory.words if arm.change is None else f"{arm.factory.words} as {arm.name}"
        if name not in found:
            with one_thread(), settings_kept():
                case = arm.as_given().make(0)[0]
                ending = [(schedule, schedule.last_epoch) for schedule in schedules_that_end(case)]
                found[name] = first_step(case, 0)
            moved = [(schedule, schedule.last_epoch - before) for schedule, before in ending]
            lasts = [1 + (each.total_steps - each.last_epoch) // by for each, by in moved if by > 0]
            longest = min(longest, *lasts, longest)
    return Starts(found, longest)


def within_schedule(plan: Plan, wish: Wish, longest: float) -> Plan:
    """Return the plan with no more steps than the schedule of a set-up has.

    Args:
        plan: What was to be run.
        wish: Its steps; where they are not asked for, there are as many as the schedule has.
        longest: As in ``Starts``.

    Raises:
        UsageError: More steps were asked for.
    """
    if plan.steps <= longest:
        return plan
    if wish.steps is not None or longest < _FEWEST_STEPS:
        raise UsageError(
            f"the schedule of the set-up (OneCycleLR) ends after {longest:.0f} steps, and {plan.steps} are to be run: "
            f"give --steps {longest:.0f}, or make the schedule longer"
        )
    said = f"{longest:.0f} steps a run instead of {plan.steps}, for there the schedule of the set-up (OneCycleLR) ends"
    return replace(plan, steps=int(longest), left_out=(*plan.left_out, said))


def known_plan(folder: Path, wanted: Mapping[str, Any]) -> Plan | None:
    """Return the plan that a budget has chosen for the run in a folder, if the same was asked for, of whatever arms."""
    if not place_of(folder).holds("run.json"):
        return None
    there = Store.open(folder).config
    if not there.get("seeds") or there.get("asked") != canonical_form(wanted["asked"]) or why_another(there, wanted):
        return None
    return Plan.from_json(there["plan"] | {"seeds": there["seeds"]})
