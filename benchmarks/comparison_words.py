"""How often a comparison gives a word to arms that do not differ: the same network, its first weights drawn anew.

Two arms that are equal in distribution are compared many times; any *holds* or *opposite* is false.

    python benchmarks/comparison_words.py --comparisons 200 --seeds 5
"""

import argparse
import math
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns
from normscope.comparing import Comparison
from normscope.records import Outcome
from normscope.records.addresses import save
from normscope.stats import adjust
from normscope.studies import Evidence

QUESTIONS = ["gradients", "step", "smoothness", "shift", "speed", "flatness", "generalisation", "units", "gap"]
PAGE = Path(__file__).parent / "results" / "comparison-words.md"


def make_case() -> ns.Case:
    """Return a small network with batch norm on data that every seed draws anew."""
    model = nn.Sequential(
        nn.Linear(8, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Linear(12, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Linear(12, 3),
    )
    batches = [(x, x[:, :3].argmax(1)) for x in (torch.randn(32, 8) for _ in range(8))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return ns.Case(
        model, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), batches[:6], optimizer, batches[6:]
    )


def draw_anew(model: nn.Module) -> None:
    """Draw the first weights again, from the stream as the factory has left it."""
    for module in model:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def words_of(found: Comparison, seeds: int) -> dict[str, Counter[str]]:
    """Return by question how often each word was given, over comparisons of so many seeds."""
    everything = found.evidence
    counts: dict[str, Counter[str]] = {question.CODE: Counter() for question in found.questions}
    for first in range(0, len(everything.seeds) - seeds + 1, seeds):
        chosen = everything.seeds[first : first + seeds]
        frame = everything.frame.filter(pl.col("seed").is_in(chosen))
        evidence = Evidence(frame, everything.settings, chosen, everything.level, everything.data)
        verdicts = adjust([question.judge(evidence, found.pairs) for question in found.questions])
        for question, verdict in zip(found.questions, verdicts, strict=True):
            counts[question.CODE][verdict.outcome.value] += 1
    return counts


def page(counts: dict[str, Counter[str]], seeds: int, steps: int) -> str:
    """Return the page."""
    comparisons = sum(next(iter(counts.values())).values())
    false = (Outcome.HOLDS.value, Outcome.OPPOSITE.value)
    words = [*false, Outcome.NO_EFFECT.value, Outcome.UNCLEAR.value, Outcome.NOT_MEASURABLE.value]
    total = sum(count[word] for count in counts.values() for word in false)
    bound = 0.05 + 3 * math.sqrt(0.05 * 0.95 / comparisons)
    lines = [
        "# Words for arms that do not differ",
        "",
        textwrap.fill(
            f"{comparisons} comparisons of {seeds} seeds, {steps} training steps: a network of three layers with "
            "batch norm, and the same network with its first weights drawn anew. Whatever *holds* or is *opposite* "
            "here is false; the words are corrected by Holm over the questions, so that in at most 5 % of the "
            f"comparisons any of them is. {total} false words were given in all, {total / comparisons:.3f} a "
            f"comparison (with chance, up to {bound:.3f} is no more than allowed). "
            "Made by `python benchmarks/comparison_words.py`.",
            120,
        ),
        "",
        "| question | " + " | ".join(words) + " |",
        "| --- | " + " | ".join("---:" for _ in words) + " |",
    ]
    for code, count in counts.items():
        lines.append(f"| {code} | " + " | ".join(str(count[word]) for word in words) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the comparisons, and write the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--comparisons", type=int, default=200)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--workers", type=int)
    options.add_argument("--out", default="runs/comparison-words")
    args = options.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ns.compare(
            make_case,
            {"own": "own", "anew": draw_anew},
            seeds=args.comparisons * args.seeds,
            steps=args.steps,
            questions=QUESTIONS,
            out=args.out,
            workers=args.workers,
            progress=lambda what, done, total: print(what, done, total) if done % 100 == 0 else None,
        )
        with np.errstate(all="ignore"):
            counts = words_of(found, args.seeds)
    save(PAGE, page(counts, args.seeds, args.steps))
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
