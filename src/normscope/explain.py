"""Find any unit: study, probe, layer, rule or question; and what studies answer in the evidence of the package."""

import math
import re
from collections import Counter
from dataclasses import dataclass
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

# Words of a question that say nothing of its subject.
_IDLE = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at bad be better by can could do does during for from get gets good has have how i if in is "
        "it its like make makes me more much my nor not nothing of on or should so than that the their there these "
        "they this to very was what when where which who why will with without worse would you your",
    )
)
_SHORTEST = 4  # letters of a word that may be the beginning of another word: "eval" of "evaluation"
_ENDINGS = ("ization", "isation", "ations", "ation", "izing", "ized", "ing", "es", "ed", "e", "s")
_WEIGHTS = (4.0, 3.0, 1.0)  # of a word in the name, in the title and in the page of a unit
_LEAST = 0.2  # of the best unit's points: what has fewer fits by chance


class UnknownNameError(UsageError):
    """No unit has the name."""


@dataclass(frozen=True)
class Fitting:
    """A unit that plain words fit.

    Attributes:
        kind: ``"study"``, ``"probe"``, ``"layer"``, ``"rule"`` or ``"question"``.
        name: The name by which `unit` finds it.
        unit: The unit.
    """

    kind: str
    name: str
    unit: Any


def unit(name: str) -> Unit | type[Unit]:
    """Find a study, probe, layer, rule or question of a comparison by its code; some also by name or class.

    A rule is also found by its name, a probe or layer by its class.

    Args:
        name: The name, in any case, with hyphens or underscores; ``study:``, ``probe:``, ``layer:``, ``rule:`` or
            ``question:`` before it chooses between kinds that share it.
            A name that ends in ``.py`` is the file of a user's own study, which is executed.

    Raises:
        UnknownNameError: No unit has that name, and no kind was chosen; the message says which names are near.
        UsageError: No unit of the chosen kind has that name, or units of two kinds have it.
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
        advice = meant(name, [key for units in kinds.values() for key in units], f"`{_LISTS[first]}` shows all names")
        raise (UnknownNameError if others else UsageError)(f"no {asked} is called {name!r}: {advice}")
    the_unit: Unit | type[Unit]
    (the_unit,) = having.values()
    return the_unit


def _folded(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def fitting(words: str, *, most: int = 12) -> list[Fitting]:
    """Return the units that plain words fit, best first: by the words of their names, titles and pages.

    A rare word counts more than a frequent word, as the logarithm of one over the share of units that have it. Units
    that lack more than half of what the words count are left out, and units with a fifth of the best unit's points.

    Words that no unit has are passed over, but not in a name without spaces, which is mistyped then.

    Args:
        words: A word, some words or a question.
        most: Units that are returned, at most.

    Returns:
        Empty where the words fit no unit, or say nothing of any subject.
    """
    asked = _stems(words) - _IDLE
    fits = [(each, {stem: _weight(stem, texts) for stem in asked}) for each, texts in _indexed()]
    having = Counter(stem for _, weights in fits for stem, weight in weights.items() if weight)
    if len(words.split()) == 1 and len(having) < len(asked):
        return []
    rarity = {stem: math.log((len(fits) + 1) / having[stem]) for stem in having}
    half = sum(rarity.values()) / 2
    scored = [
        (sum(rarity[stem] * weight for stem, weight in weights.items() if weight), each)
        for each, weights in fits
        if any(weights.values()) and sum(rarity[stem] for stem, weight in weights.items() if weight) >= half
    ]
    best = sorted(scored, key=lambda pair: -pair[0])[:most]
    return [each for points, each in best if points >= _LEAST * best[0][0]]


@cache
def _indexed() -> list[tuple[Fitting, tuple[frozenset[str], ...]]]:
    """Return every unit with the words of its name, its title and its page."""
    kinds: dict[str, list[Any]] = {
        "question": comparing.all_questions(),
        "study": studies.all(),
        "rule": rules.all(),
        "probe": probes.all(),
        "layer": list(discover(layers, AbstractLayer)),
    }
    codes = Counter(each.CODE for units in kinds.values() for each in units)
    found = []
    for kind, units in kinds.items():
        for each in units:
            name = each.CODE if codes[each.CODE] == 1 else f"{kind}:{each.CODE}"
            called = f"{each.CODE} {getattr(each, 'SLUG', '')}"
            title = f"{each.title()} {getattr(each, 'CLAIM', '')} {getattr(each, 'QUESTION', '')}"
            texts = (called, title, " ".join(each.page().values()))
            found.append((Fitting(kind, name, each), tuple(frozenset(_stems(text)) for text in texts)))
    return found


def _weight(stem: str, texts: tuple[frozenset[str], ...]) -> float:
    """Return how much a word counts in a unit: for each part that has it, or half for a word that begins with it."""
    points = 0.0
    for having, weight in zip(texts, _WEIGHTS, strict=True):
        if stem in having:
            points += weight
        elif len(stem) >= _SHORTEST and any(word.startswith(stem) for word in having):
            points += weight / 2
    return points


def _stems(text: str) -> set[str]:
    """Return the words of a text in small letters, without common endings where four letters or more are left."""
    words = set(re.findall(r"[^\W_]+", text.lower())) - _IDLE
    cut = re.compile(rf"(?<=\w{{{_SHORTEST}}})(?:{'|'.join(_ENDINGS)})$")
    return {cut.sub("", word) for word in words}


def is_study(found: Unit | type[Unit]) -> bool:
    """Tell whether a unit is a study, which has an answer and not only a page."""
    return isinstance(found, studies.AbstractStudy)


def is_question(found: Unit | type[Unit]) -> bool:
    """Tell whether a unit is a question of a comparison, which the networks of the atlas answer."""
    return isinstance(found, comparing.AbstractQuestion)


def question_of(study: str) -> str:
    """Return the code of the question of a comparison that asks what a study tests; empty if there is none.

    The questions that people ask have both: the study that is shown as the answer, and the question of a comparison.

    Args:
        study: Slug of the study.
    """
    return next((each.atlas for each in studies.texts().questions if each.picture == study and each.atlas), "")


@cache
def committed() -> CondensedEvidence:
    """Return the evidence that is shipped with the package; it is read once.

    Raises:
        StoreError: It is missing, or was made by another version.
    """
    return read(Path(studies.__file__).parent / "data" / "evidence.json")
