"""A comparison without its records: every contrast with its numbers seed by seed, and no name of the user's."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import polars as pl
from torch import nn

from normscope import layers
from normscope._errors import UsageError
from normscope.atlas import KeptComparison, KeptContrast, KeptQuestion, Network, keep
from normscope.comparing.comparison import Comparison
from normscope.comparing.described import MODEL
from normscope.comparing.layers import classes_of

_OWN = "own classes"
_LONGEST = 120  # letters of a name
_LEFT_OUT = "(name left out)"  # where a sentence names a layer
_HOLDERS = ("Sequential", "ModuleList", "ModuleDict", "Identity")  # they compute nothing


def condense(
    comparison: Comparison, *, network: str, data: str, differs_from: str = "", differs_in: str = ""
) -> KeptComparison:
    """Return a comparison without its records, to be committed or sent.

    Args:
        comparison: The comparison.
        network: What to call the network: ``"VGG-A at a quarter of its width"``.
        data: What it is trained on: ``"CIFAR-10 subset (16k/3k)"``.
        differs_from: ``"NAME on DATA"`` of the network from which it differs in one thing; empty if it is no variant.
        differs_in: That thing, in words.

    Raises:
        UsageError: A name is missing, or the comparison has too few seeds for words.
        DataError: Not one seed is complete.
    """
    for said in (network, data):
        if not said.strip() or len(said) > _LONGEST or not said.isprintable():
            raise UsageError(f"the network and its data need names of 1 to {_LONGEST} letters, not {said[:40]!r}")
    if bool(differs_from) is not bool(differs_in):
        raise UsageError("a variant has both: the network from which it differs, and the thing in which it does")
    if comparison.described:
        raise UsageError("a comparison of fewer than 3 seeds has no words: run more seeds, then condense it")
    evidence, store = comparison.evidence, comparison.store
    learns = comparison.questions[0]
    of = Network(network.strip(), data.strip(), dict(_layers(comparison)), differs_from.strip(), differs_in.strip())
    provenance, versions = store.provenance, store.config["versions"]
    kept = KeptComparison(
        network=of,
        arms=dict(comparison.arms),
        pair=(comparison.pairs[0].first, comparison.pairs[0].second),
        learning={arm: keep(learns.learns(arm), evidence, learns) for arm in comparison.arms},
        steps=comparison.plan.steps,
        batches=comparison.plan.batches,
        rates=tuple(map(float, comparison.plan.rates)),
        seeds=evidence.seeds,
        level=evidence.level,
        questions=tuple(_questions(comparison)),
        normscope=str(versions["normscope"]),
        torch=str(versions["torch"]),
        cpu=str(provenance.get("cpu") or ""),
        cores=(provenance.get("cores") or {}).get("usable"),
        device=str((provenance.get("torch") or {}).get("accelerator") or "cpu"),
        began=str(provenance.get("utc") or ""),
        seconds=round(comparison.seconds, 1),
    )
    return without_names(kept, comparison.evidence.select(probe=MODEL)["site"].cast(pl.String).unique().to_list())


def _questions(comparison: Comparison) -> Iterator[KeptQuestion]:
    evidence, pairs = comparison.evidence, comparison.pairs
    for question in comparison.questions:
        contrasts = tuple(
            keep(contrast, evidence, question, primary=not index)
            for index, contrast in enumerate(question.judged(evidence, pairs))
        )
        yield KeptQuestion(question.CODE, question.NUMBER, question.asks(pairs[0]), question.lacks(evidence), contrasts)


def _layers(comparison: Comparison) -> Iterator[tuple[str, int]]:
    """Yield the classes of the first arm's layers that are torch's or this package's, and how many there are."""
    names = classes_of(comparison.evidence, comparison.pairs[0].first)
    known = [name if hasattr(nn, name) or hasattr(layers, name) else _OWN for name in names if name not in _HOLDERS]
    yield from sorted(Counter(known).items())


def without_names(kept: KeptComparison, sites: Collection[str]) -> KeptComparison:
    """Return a comparison in whose sentences no layer of the user's is named.

    Args:
        kept: The comparison.
        sites: Names of the modules of all arms.
    """
    # A number such as "12" or "3.3" may be an effect, and a name of one part a word of the language, such as "norm".
    telling = [site for site in sites if re.search(r"[^\d.]", site) and re.search(r"[\d.]", site)]
    if not telling:
        return kept
    parts = "|".join(map(re.escape, sorted(telling, key=len, reverse=True)))
    named = re.compile(rf"(?<![\w.])(?:{parts})(?![\w]|\.\w)")

    def cut(said: str) -> str:
        return named.sub(_LEFT_OUT, said)

    questions = tuple(
        replace(
            asked,
            asks=cut(asked.asks),
            lacks=cut(asked.lacks),
            contrasts=tuple(_cut(contrast, cut) for contrast in asked.contrasts),
        )
        for asked in kept.questions
    )
    learning = {arm: _cut(contrast, cut) for arm, contrast in kept.learning.items()}
    return replace(kept, questions=questions, learning=learning)


def _cut(contrast: KeptContrast, cut: Callable[[str], str]) -> KeptContrast:
    return replace(
        contrast,
        claim=cut(contrast.claim),
        endpoint=cut(contrast.endpoint),
        says=cut(contrast.says),
        reason=cut(contrast.reason),
        conditions={name: cut(value) for name, value in contrast.conditions.items()},
        premises=tuple(_cut(premise, cut) for premise in contrast.premises),
    )
