"""Many claims judged together: Holm's step-down correction.

Holm, S., "A simple sequentially rejective multiple test procedure", Scandinavian J. of Statistics 6 (1979) 65-70. It
keeps the probability of any false rejection at its level whatever the dependence between the tests, and rejects all
that Bonferroni rejects.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normscope._errors import DataError
from normscope.records import Outcome, Verdict
from normscope.stats._values import Floats, check_level

_ALONE = "alone this would read "


def holm(p_values: ArrayLike, alpha: float = 0.05) -> tuple[Floats, NDArray[np.bool_]]:
    """Adjust p-values for being looked at together.

    Args:
        p_values: Shape ``(k,)``, each in [0, 1]; k may be 0.
        alpha: Probability of any false rejection to keep, in (0, 1).

    Returns:
        Adjusted p-values in the order given, and which hypotheses are rejected (adjusted p at most ``alpha``).

    Raises:
        DataError: A p-value is NaN or outside [0, 1]; the message says how many and which.
    """
    check_level(alpha)
    try:
        p = np.atleast_1d(np.asarray(p_values, dtype=np.float64))
    except (TypeError, ValueError):
        raise DataError("p-values are not numbers") from None
    if p.ndim != 1:
        raise DataError(f"p-values have shape {p.shape}; give a sequence of numbers")
    bad = np.flatnonzero(~((p >= 0) & (p <= 1)))
    if bad.size:
        shown = ", ".join(f"{p[k]:g} at position {k}" for k in bad[:5])
        raise DataError(f"{bad.size} of {p.size} p-values are not between 0 and 1 ({shown})")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted, adjusted <= alpha


def adjust(verdicts: Sequence[Verdict], alpha: float = 0.05) -> list[Verdict]:
    """Correct the headlines of studies that are read together.

    A decided headline whose adjusted p-value exceeds ``alpha`` becomes *unclear*, and says why. Identities and what is
    not measurable carry no p-value; they are returned as they are and do not count among the headlines.

    Args:
        verdicts: One or more studies' verdicts, in any order, as their studies judged them (not adjusted before).
        alpha: Probability of any false decision to keep.

    Returns:
        The verdicts in the order given, the headlines with ``adjusted_p``.

    Raises:
        DataError: A p-value is NaN or outside [0, 1].
    """
    p_values = {k: v.p_value for k, v in enumerate(verdicts) if v.primary and v.p_value is not None}
    adjusted, rejected = holm(list(p_values.values()), alpha)
    result = list(verdicts)
    for k, p, stands in zip(p_values, adjusted.tolist(), rejected.tolist(), strict=True):
        verdict = verdicts[k]
        if stands or not verdict.outcome.decided:
            result[k] = replace(verdict, adjusted_p=p)
            continue
        why = (
            f"{_ALONE}{verdict.outcome.value!r} (p = {verdict.p_value:.2g}), but among "
            f"{len(p_values)} claims judged together p = {p:.2g} exceeds {alpha:g} (Holm)"
        )
        result[k] = replace(verdict, outcome=Outcome.UNCLEAR, adjusted_p=p, why=why)
    return result


def as_judged_alone(verdict: Verdict) -> Verdict:
    """Return the verdict of a headline as it was before a correction, so that it can be corrected among others.

    Args:
        verdict: As `adjust` returned it, or as its study judged it.
    """
    if not verdict.why.startswith(_ALONE):
        return replace(verdict, adjusted_p=None)
    word = verdict.why.removeprefix(_ALONE)[1:].partition("'")[0]
    return replace(verdict, outcome=Outcome(word), adjusted_p=None, why="")
