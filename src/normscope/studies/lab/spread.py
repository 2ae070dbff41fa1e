"""The spread of relative gradients over layers, and how deep a network trains: read from records, and in theory."""

import math
from typing import Any

import numpy as np

from normscope.plots import Table
from normscope.stats import proportional
from normscope.studies.evidence import Evidence, Floats
from normscope.studies.lab.chain import theory
from normscope.studies.quantity import Quantity


def spread(step: int, words: str) -> Quantity:
    """Return the logarithm of the largest over the smallest relative gradient at a step."""
    return Quantity(
        words,
        lambda evidence, **where: np.log(
            evidence.per_seed(evidence.select(probe="relative_gradient", name="spread", step=step, **where))
        ),
        logs=True,
    )


START, END = (spread(step, f"spread of relative gradients at step {step}") for step in (0, 20))


def spread_in_theory(depth: int, batch: int) -> float:
    """Return the spread of relative gradients at step 0 in theory."""
    return float(theory("relu", batch) ** ((depth - 1) / 2))


def _deepest(evidence: Evidence, batch: int, **_: Any) -> Floats:
    """Return per seed the most layers with which test accuracy gets beyond twice chance; 1 where none does."""
    depths = evidence.settings["depths"]
    trained = np.array([evidence.accuracy("batch", depth=depth, batch=batch) > 0.2 for depth in depths])
    return np.asarray(np.where(trained, np.array(depths, dtype=np.float64)[:, None], 1.0).max(0))


DEEPEST = Quantity("layers of the deepest network that trains", _deepest)


def growth_length(batch: int) -> float:
    """Return how many layers squared gradients take to grow e-fold, in theory."""
    return 1 / math.log(theory("relu", batch))


def against_theory(evidence: Evidence) -> list[Table]:
    """Tabulate spreads at step 0 against theory, and how well lines through the origin fit spread and depth."""
    depths, batches = evidence.settings["depths"], evidence.settings["batches"]
    half = (np.array(depths, dtype=np.float64) - 1) / 2
    rows, fits = [], []
    for batch in batches:
        logs = np.array([START(evidence, depth=depth, batch=batch) for depth in depths])
        for layers, mean in zip(depths, logs.mean(1), strict=True):
            words = f"spread at step 0, {layers} layers, B={batch}"
            rows.append((words, *_ratio(math.exp(mean), spread_in_theory(layers, batch), ".4g")))
        slope, r2 = proportional(np.repeat(half, logs.shape[1]), logs.ravel())
        expected = theory("relu", batch)
        rows.append((f"growth per layer, from the spreads, B={batch}", *_ratio(math.exp(slope), expected, ".4f")))
        words = f"log spread at step 0 on half the layers less one, B={batch}"
        fits.append((words, f"{slope:.4f}", f"{math.log(expected):.4f}", _share(r2)))
    deepest = np.array([DEEPEST(evidence, batch=batch) for batch in batches])
    lengths = np.repeat([growth_length(batch) for batch in batches], deepest.shape[1])
    factor, r2 = proportional(lengths, deepest.ravel())
    fits.append(("deepest that trains on the length of growth", f"{factor:.3g}", "16", _share(r2)))
    return [
        Table(
            "Against theory", ("Quantity", "Measured", "Theory", "Ratio"), tuple(rows), "Geometric means over seeds."
        ),
        Table(
            "Lines through the origin",
            ("Fit", "Slope", "Theory or source", "R^2"),
            tuple(fits),
            "All seeds in one fit. The share of variance explained is about the mean, so a line through the origin can "
            "have a negative one; it is left out where all values are the same.",
        ),
    ]


def _ratio(measured: float, expected: float, digits: str) -> tuple[str, str, str]:
    return f"{measured:{digits}}", f"{expected:{digits}}", f"{measured / expected:.4f}"


def _share(r2: float) -> str:
    return f"{r2:.3f}" if math.isfinite(r2) else ""
