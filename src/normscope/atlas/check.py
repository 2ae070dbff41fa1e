"""What a condensed comparison must be beyond its layout: its numbers fit its seeds, its names fit each other."""

import math
import re
from collections.abc import Iterator

from normscope.atlas.kept import RULES, KeptContrast
from normscope.atlas.layout import KeptComparison
from normscope.studies.contrast import SCALES

_VERSION = re.compile(r"\d+(\.\d+)+\S*")
_FEWEST = 3  # seeds that give a word


def faults(kept: KeptComparison) -> Iterator[str]:
    """Yield what is wrong with a comparison, each in a clause; nothing if it can be judged."""
    if len(kept.seeds) < _FEWEST or len(set(kept.seeds)) < len(kept.seeds):
        yield f"it has {len(set(kept.seeds))} different seeds, and at least {_FEWEST} are needed"
    if len(kept.pair) != 2 or not set(kept.pair) <= kept.arms.keys():
        yield "the two arms that decide are not among its arms"
    if kept.learning.keys() != kept.arms.keys():
        yield "it does not say of each arm whether it learns"
    if not 0 < kept.level < 1:
        yield f"its level of confidence is {kept.level}"
    if not (_VERSION.fullmatch(kept.normscope) and _VERSION.fullmatch(kept.torch)):
        yield "it does not name the versions of normscope and torch that made it"
    if len({question.code for question in kept.questions}) < len(kept.questions) or not kept.questions:
        yield "a question stands twice, or none is there"
    for question in kept.questions:
        if not question.contrasts:
            yield f"question {question.code!r} has no contrast"
        for contrast in question.contrasts:
            yield from (f"question {question.code!r}: {fault}" for fault in _of(contrast, kept))
    for arm, contrast in kept.learning.items():
        yield from (f"learning of {arm!r}: {fault}" for fault in _of(contrast, kept))


def _of(contrast: KeptContrast, kept: KeptComparison) -> Iterator[str]:
    """Yield what is wrong with a contrast."""
    if contrast.rule not in RULES or contrast.scale not in SCALES:
        yield f"the rule {contrast.rule[:20]!r} or the scale {contrast.scale[:20]!r} is not known"
    bound = contrast.bound
    if not math.isfinite(bound) or bound < 0 or (contrast.rule != RULES[0] and bound == 0):
        yield f"the bound {bound} is no size"
    if (len(contrast.limits), len(contrast.labels)) != (2, 2) or len(contrast.comparative) not in (0, 2):
        yield "a quantity has two limits, a contrast two labels, and a comparative two words or none"
    if any(name != "effect" for name in re.findall(r"\{([^{}]*)\}", contrast.says)):
        yield "what it says has a place for something else than the effect"
    if not set(contrast.learn) <= kept.learning.keys():
        yield "an arm that must learn is not among the arms"
    count = len(kept.seeds)
    sides = [side for side in (contrast.first, contrast.second) if side is not None]
    lengths = [len(side.values) for side in sides if side.theory is None]
    lengths += [len(found) for found in (contrast.effects, *(side.missed for side in sides)) if found]
    if any(length != count for length in lengths):
        yield f"it has numbers of {sorted(set(lengths) - {count})[0]} seeds, and the comparison has {count}"
    for premise in contrast.premises:
        yield from _of(premise, kept)
