"""Find any unit: a study, a probe, a layer or a rule."""

from typing import Any

from normscope import layers, probes, rules, studies
from normscope._errors import UsageError
from normscope._unit import Unit, discover, near
from normscope.layers import AbstractLayer


def unit(name: str) -> Unit | type[Unit]:
    """Find a study, probe, layer or rule by its code; a rule also by its name, a probe or layer by its class.

    Where two kinds share it, with ``study:``, ``probe:``, ``layer:`` or ``rule:`` before it.

    Raises:
        UsageError: Nothing has that name; the message says what is near.
    """
    kinds: dict[str, dict[str, Any]] = {
        "study": {found.CODE: found for found in studies.all()},
        "probe": {key: found for found in probes.all() for key in (found.CODE, found.__name__)},
        "layer": {key: found for found in discover(layers, AbstractLayer) for key in (found.CODE, found.__name__)},
        "rule": {key: rule for rule in rules.all() for key in (rule.CODE, rule.SLUG)},
    }
    kind, _, rest = name.partition(":")
    if rest and kind in kinds:
        name, kinds = rest, {kind: kinds[kind]}
    having = [kind for kind, units in kinds.items() if name in units]
    if len(having) > 1:
        raise UsageError(f"{name!r} is a {' and a '.join(having)}: say {' or '.join(f'{k}:{name}' for k in having)}")
    known = {code: found for units in kinds.values() for code, found in units.items()}
    if name.endswith(".py"):
        return studies.get(name)
    if name in known:
        found: Unit | type[Unit] = known[name]
        return found
    raise UsageError(f"no study, probe, layer or rule is called {name!r}: did you mean {near(name, known)}?")
