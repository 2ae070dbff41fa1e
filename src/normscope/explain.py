"""Find any unit: study, probe, layer, rule or question; and what studies answer in the evidence of the package."""

from functools import cache
from pathlib import Path
from typing import Any

from normscope import comparing, layers, probes, rules, studies
from normscope._errors import UsageError
from normscope._unit import Unit, discover, meant
from normscope.layers import AbstractLayer
from normscope.report import CondensedEvidence, read

#: The command that lists the units of a kind.
_LISTS = {
    "study": "normscope study list",
    "probe": "normscope probes",
    "layer": "normscope layers",
    "rule": "normscope rules",
    "question": "normscope compare --list",
}


def unit(name: str) -> Unit | type[Unit]:
    """Find a study, probe, layer, rule or question of a comparison by its code; some also by name or class.

    A rule is also found by its name, a probe or layer by its class.

    Args:
        name: The name, in any case, with hyphens or underscores; ``study:``, ``probe:``, ``layer:``, ``rule:`` or
            ``question:`` before it chooses between kinds that share it.
            A name that ends in ``.py`` is the file of a user's own study, which is executed.

    Raises:
        UsageError: No unit has that name, or units of two kinds have it; the message says which are near.
    """
    if name.endswith(".py"):
        return studies.get(name)
    kinds: dict[str, dict[str, Any]] = {
        "study": {study.CODE: study for study in studies.all()},
        "probe": {key: probe for probe in probes.all() for key in (probe.CODE, probe.__name__)},
        "layer": {key: layer for layer in discover(layers, AbstractLayer) for key in (layer.CODE, layer.__name__)},
        "rule": {key: rule for rule in rules.all() for key in (rule.CODE, rule.SLUG)},
        "question": {question.CODE: question for question in comparing.all_questions()},
    }
    kind, _, rest = name.partition(":")
    if rest and kind.strip().lower() in kinds:
        kind = kind.strip().lower()
        name, kinds = rest, {kind: kinds[kind]}
    having = {kind: units[name] for kind, units in kinds.items() if name in units} or {
        kind: found for kind, units in kinds.items() for key, found in units.items() if _folded(key) == _folded(name)
    }
    if len(having) > 1:
        raise UsageError(f"{name!r} is a {' and a '.join(having)}: say {' or '.join(f'{k}:{name}' for k in having)}")
    if not having:
        first, *others = kinds
        asked = f"{', '.join([first, *others[:-1]])} or {others[-1]}" if others else first
        advice = meant(name, [key for units in kinds.values() for key in units], listed=_LISTS[first])
        raise UsageError(f"no {asked} is called {name!r}: {advice}")
    the_unit: Unit | type[Unit]
    (the_unit,) = having.values()
    return the_unit


def _folded(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def is_study(found: Unit | type[Unit]) -> bool:
    """Tell whether a unit is a study, which has an answer and not only a page."""
    return isinstance(found, studies.AbstractStudy)


@cache
def committed() -> CondensedEvidence:
    """Return the evidence that is shipped with the package; it is read once.

    Raises:
        StoreError: It is missing, or was made by another version.
    """
    return read(Path(studies.__file__).parent / "data" / "evidence.json")
