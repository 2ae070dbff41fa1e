"""A comparison without its records: every contrast with its numbers seed by seed, and no name of the user's."""

import re
from collections import Counter
from collections.abc import Collection, Iterator

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
    refuse_names(kept, comparison.evidence.select(probe=MODEL)["site"].cast(pl.String).unique().to_list())
    return kept


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


def refuse_names(kept: KeptComparison, sites: Collection[str]) -> None:
    """Refuse a comparison of which a sentence names a layer of the user's.

    Args:
        kept: The comparison.
        sites: Names of the modules of all arms.

    Raises:
        UsageError: A sentence does.
    """
    # A plain number, or a name of one part that may be a word of the language, such as "norm", tells nothing.
    telling = [site for site in sites if "." in site or (re.search(r"\d", site) and not site.isdigit())]
    if not telling:
        return
    named = re.compile(r"(?<![\w.])(?:" + "|".join(map(re.escape, telling)) + r")(?![\w.])")
    for said in _sentences(kept):
        if found := named.search(said):
            raise UsageError(f"a sentence names the layer {found[0]!r}, so the comparison is not condensed: {said}")


def _sentences(kept: KeptComparison) -> Iterator[str]:
    for contrast in [*kept.learning.values(), *(each for asked in kept.questions for each in asked.contrasts)]:
        yield from _said(contrast)
    for asked in kept.questions:
        yield from (asked.asks, asked.lacks)


def _said(contrast: KeptContrast) -> Iterator[str]:
    yield from (contrast.claim, contrast.endpoint, contrast.says, contrast.reason, *contrast.conditions.values())
    for premise in contrast.premises:
        yield from _said(premise)
