"""The configuration of a comparison: what was asked for, of which set-ups, and what was made of it."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normscope.comparing.arms import Arm
from normscope.comparing.fingerprint import first_step
from normscope.comparing.folder import why_another
from normscope.comparing.plan import Plan, Wish
from normscope.comparing.reuse import CODE
from normscope.modules.settings import settings_kept
from normscope.records import Store, provenance
from normscope.records.addresses import place_of
from normscope.records.json import canonical_form
from normscope.studies.workers import one_thread


def configuration(arms: Sequence[Arm], starts: Mapping[str, str], plan: Plan, wish: Wish) -> dict[str, Any]:
    """Return what was asked for and of which set-ups, without the plan that is made of it.

    Args:
        arms: The arms.
        starts: As of ``starts_of``.
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


def starts_of(arms: Sequence[Arm]) -> dict[str, str]:
    """Return the digest of the first training step at seed 0, for every factory and every change of the user's.

    Arms that surgery makes of one factory have one digest: that of the network as the factory makes it.

    Raises:
        UsageError: The user's code raises.
    """
    found = {}
    for arm in arms:
        name = arm.factory.words if arm.change is None else f"{arm.factory.words} as {arm.name}"
        if name not in found:
            with one_thread(), settings_kept():
                found[name] = first_step(arm.as_given().make(0)[0], 0)
    return found


def known_plan(folder: Path, wanted: Mapping[str, Any]) -> Plan | None:
    """Return the plan that a budget has chosen for the run in a folder, if the same was asked for, of whatever arms."""
    if not place_of(folder).holds("run.json"):
        return None
    there = Store.open(folder).config
    if not there.get("seeds") or there.get("asked") != canonical_form(wanted["asked"]) or why_another(there, wanted):
        return None
    return Plan.from_json(there["plan"] | {"seeds": there["seeds"]})
