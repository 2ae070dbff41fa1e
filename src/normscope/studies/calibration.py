"""How often the verdict engine is wrong, word by word, by simulated studies whose truth is known."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from normscope._errors import UsageError
from normscope.records import Outcome, Verdict
from normscope.running import Executor, Work, connected
from normscope.stats import LEVEL, TWO_LOOKS_LEVEL, adjust, slope_per_seed
from normscope.studies.contrast import Contrast, Reading
from normscope.studies.evidence import Arrivals, Evidence, Floats
from normscope.studies.quantity import Quantity

#: The margin, in standard deviations of what a seed adds to the difference of two arms.
MARGIN = 1.0
HORIZON = 300.0
#: Numbers of seeds that are simulated.
SEEDS = (3, 5, 10, 20)
#: Claims of a family that is judged together.
FAMILY = 20


def _one_sided(rng: np.random.Generator, n: int) -> Floats:
    """Return skewed values of mean 0 and standard deviation 1."""
    values: Floats = rng.lognormal(0, 0.8, n)
    return (values - math.exp(0.32)) / (math.exp(0.32) * math.sqrt(math.exp(0.64) - 1))


#: What seeds add to the difference of two equal arms; each has a mean of 0 and a standard deviation of about 1.
NOISE: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_t(3, n) / math.sqrt(3),
    # Two arms of one skewed distribution, as losses and steps are.
    "skewed": lambda rng, n: (rng.lognormal(0, 0.8, n) - rng.lognormal(0, 0.8, n)) / 1.66,
    # One arm alone, whose skew no pairing takes out.
    "skewed up": _one_sided,
    "skewed down": lambda rng, n: -_one_sided(rng, n),
    "all seeds equal": lambda rng, n: np.zeros(n),
}
_PAIRED = ("normal", "heavy tails", "skewed")

#: Effects in units of the margin.
TRUTHS = {"against, at the margin": -1.0, "no effect": 0.0, "at the margin": 1.0, "twice the margin": 2.0}


class Rate(NamedTuple):
    """How often simulated studies got a word.

    Attributes:
        rule: By which rule they were judged.
        noise: What the seeds add.
        seeds: How many seeds a study has.
        truth: The true effect, in words.
        word: The word that is counted; ``"any false word"`` for a family of claims.
        share: Share of the studies that got it.
        low: Lower end of the share's 95 % interval (Clopper & Pearson).
        high: Upper end.
        allowed: How often it may be given where it is false; NaN where it is true, so that the share is the power.
        off: Whether the share is above that beyond chance (p < 0.001: hundreds of rates are looked at).
    """

    rule: str
    noise: str
    seeds: int
    truth: str
    word: str
    share: float
    low: float
    high: float
    allowed: float
    off: bool


def calibrate(
    *,
    studies: int = 1000,
    seeds: int | Sequence[int] = SEEDS,
    rules: Sequence[str] = (),
    seed: int = 0,
    executor: str | Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Rate]:
    """Simulate studies and judge them by the contrasts that judge the real ones.

    A word is false where the truth is another: *holds* where the effect does not clear the margin, *opposite* where it
    is not beyond the margin on the other side, *no effect that matters* where it is not within it. An interval of level
    0.95 lets each word be false in 2.5 % of the studies.

    Args:
        studies: How many for each rule, noise, number of seeds and truth.
        seeds: Replicates of a study, or several numbers of them.
        rules: Only these of ``RULES``; all if empty.
        seed: Of the simulation.
        executor: Where studies are simulated, as ``normscope.studies.run`` takes it; None for this process. The rates
            are the same.
        progress: Called with (done, in all).

    Yields:
        A rate for every rule, noise, number of seeds, truth, and word that is false or has power there.

    Raises:
        UsageError: Fewer than 20 studies or 2 seeds, or a rule of another name.
    """
    if unknown := [rule for rule in rules if rule not in RULES]:
        raise UsageError(f"no rule {unknown[0]!r}: use {', '.join(RULES)}")
    counts = (seeds,) if isinstance(seeds, int) else tuple(seeds)
    if studies < 20 or min(counts, default=0) < 2:
        raise UsageError(f"needs at least 20 studies of 2 seeds, got {studies} of {min(counts, default=0)}")
    cases = [
        (rule, noise, n, truth)
        for rule in rules or RULES
        for noise in RULES[rule].noises
        for n in counts
        for truth in RULES[rule].words
    ]
    work = Work(functools.partial(_simulated, studies, seed), _name_of)
    tasks = list(enumerate(cases))
    said: dict[int, Counter[str]] = {}
    with connected(executor) as where:
        results = map(work, tasks) if executor is None else where.run(work, tasks)
        for done, (rule, noise, n, truth) in enumerate(cases):
            if progress is not None:
                progress(done, len(cases))
            while done not in said:  # results come in whatever order
                index, words = next(results)
                said[index] = words
            for word, allowed in RULES[rule].words[truth].items():
                yield _rate((rule, noise, n, truth, word), said[done][word], studies, allowed)
    if progress is not None:
        progress(len(cases), len(cases))


_Case = tuple[str, str, int, str]


def _simulated(studies: int, seed: int, task: tuple[int, _Case]) -> tuple[int, Counter[str]]:
    """Simulate the studies of a numbered case, and count the words that they get."""
    index, (rule, noise, n, truth) = task
    rng, judge = np.random.default_rng([seed, index]), RULES[rule].judge
    return index, Counter(judge(rng, noise, n, TRUTHS[truth]) for _ in range(studies))


def _name_of(task: tuple[int, _Case]) -> str:
    rule, noise, n, truth = task[1]
    return f"the rule {rule!r}, {noise}, {n} seeds, {truth}"


def _rate(case: tuple[str, str, int, str, str], count: int, studies: int, allowed: float) -> Rate:
    from scipy.stats import binomtest

    ends = binomtest(count, studies).proportion_ci(0.95)
    off = not math.isnan(allowed) and binomtest(count, studies, allowed, alternative="greater").pvalue < 1e-3
    return Rate(*case, count / studies, float(ends.low), float(ends.high), allowed, bool(off))


def _read(contrast: Contrast, seeds: int, level: float = LEVEL) -> Reading:
    return contrast.read(Evidence(pl.DataFrame(), {}, tuple(range(seeds)), level))


def _planted(values: Floats, *, scale: str = "difference", level: float = LEVEL, **rule: Any) -> str:
    """Judge one number a seed by a contrast's rule."""
    contrast = Contrast(Quantity("simulated", lambda _: values), scale=scale, **rule)
    return _read(contrast, len(values), level).judge(MARGIN).outcome.value


def _beyond(rng: np.random.Generator, noise: str, n: int, truth: float) -> str:
    return _planted(truth * MARGIN + NOISE[noise](rng, n))


def _one_arm(rng: np.random.Generator, noise: str, n: int, truth: float) -> str:
    return _planted(truth * MARGIN + NOISE[noise](rng, n), scale="value")


def _extended(rng: np.random.Generator, noise: str, n: int, truth: float) -> str:
    values = truth * MARGIN + NOISE[noise](rng, 2 * n)
    first = _planted(values[:n], level=TWO_LOOKS_LEVEL)
    return first if first != Outcome.UNCLEAR.value else _planted(values, level=TWO_LOOKS_LEVEL)


def _alike(rng: np.random.Generator, noise: str, n: int, truth: float) -> str:
    return _planted(truth * 2 * MARGIN + NOISE[noise](rng, n), equal_within=2 * MARGIN)


def _no_worse(rng: np.random.Generator, noise: str, n: int, truth: float) -> str:
    return _planted(truth * 2 * MARGIN + NOISE[noise](rng, n), no_worse_than=2 * MARGIN)


def _slope(rng: np.random.Generator, noise: str, n: int, truth: float) -> str:
    x = np.arange(6.0)
    # A seed's slope has a standard deviation of 1: scatter about a line of its own.
    scatter = np.stack([NOISE[noise](rng, n) for _ in x], axis=1) * math.sqrt(((x - x.mean()) ** 2).sum())
    return _planted(slope_per_seed(x, truth * MARGIN * x + scatter), scale="value")


def _censored(rng: np.random.Generator, noise: str, n: int, truth: float) -> str:
    """Judge log-ratios of steps to a target, some of which are censored at the horizon, paired by seed."""
    common, factor = rng.normal(0, 0.5, n), math.log(1.5)
    spread = factor / math.sqrt(2) / MARGIN
    slow = 120 * np.exp(common + truth * factor + spread * NOISE[noise](rng, n))
    steps = {"slow": slow, "fast": 120 * np.exp(common + spread * NOISE[noise](rng, n))}

    def read(_: Evidence, arm: str) -> Arrivals:
        missed = steps[arm] > HORIZON
        return Arrivals(np.where(missed, HORIZON, steps[arm]), missed, HORIZON)

    contrast = Contrast(Quantity("simulated", read, censored=True), "slow", "fast", scale="log-ratio", margin=factor)
    return _read(contrast, n).judge(factor).outcome.value


def _family(rng: np.random.Generator, noise: str, n: int, truth: float) -> str:
    """Judge a family of claims that all lie at the margin, each extended where it is unclear, together by Holm."""
    family = []
    for _ in range(FAMILY):
        values = truth * MARGIN + NOISE[noise](rng, 2 * n)
        for seen in (values[:n], values):
            reading = _read(Contrast(Quantity("simulated", lambda _, seen=seen: seen)), len(seen), TWO_LOOKS_LEVEL)
            decision = reading.judge(MARGIN)
            if decision.outcome is not Outcome.UNCLEAR:
                break
        word, p, _ = decision
        family.append(Verdict("simulated", "", word, "", reading.effect, MARGIN, "", p_value=p))
    return _ANY if any(verdict.outcome.decided for verdict in adjust(family)) else ""


class _Rule(NamedTuple):
    """A rule of judging: how a study is simulated, with what noise, and what each word may come to at each truth."""

    judge: Callable[[np.random.Generator, str, int, float], str]
    words: dict[str, dict[str, float]]
    noises: tuple[str, ...] = _PAIRED


_ANY = "any false word"
_HOLDS, _OPPOSITE, _NONE = Outcome.HOLDS.value, Outcome.OPPOSITE.value, Outcome.NO_EFFECT.value
_SIDE, _POWER = (1 - LEVEL) / 2, math.nan
_BEYOND = {
    "against, at the margin": {_HOLDS: _SIDE, _OPPOSITE: _SIDE, _NONE: _SIDE},
    "no effect": {_HOLDS: _SIDE, _OPPOSITE: _SIDE},
    "at the margin": {_HOLDS: _SIDE, _OPPOSITE: _SIDE, _NONE: _SIDE},
    "twice the margin": {_HOLDS: _POWER, _OPPOSITE: _SIDE, _NONE: _SIDE},
}
_ALIKE = {
    "against, at the margin": {_HOLDS: _SIDE, _OPPOSITE: _SIDE},
    "no effect": {_HOLDS: _POWER, _OPPOSITE: _SIDE},
    "at the margin": {_HOLDS: _SIDE, _OPPOSITE: _SIDE},
    "twice the margin": {_HOLDS: _SIDE, _OPPOSITE: _POWER},
}
_NO_WORSE = {
    "against, at the margin": {_HOLDS: _SIDE, _OPPOSITE: _SIDE},
    "no effect": {_HOLDS: _POWER, _OPPOSITE: _SIDE},
    "twice the margin": {_HOLDS: _POWER, _OPPOSITE: _SIDE},
}
# Censored effects are drawn in toward none, so "no effect" is only told of pairs in which both runs arrived.
RULES = {
    "beyond a margin": _Rule(_beyond, _BEYOND, (*_PAIRED, "all seeds equal")),
    "beyond a margin, extended once": _Rule(_extended, _BEYOND),
    #: Known to err more often than its level where values pile up far from the margin: few seeds do not show the tail.
    "a value of one arm": _Rule(_one_arm, _BEYOND, ("skewed up", "skewed down")),
    "alike within a bound": _Rule(_alike, _ALIKE),
    "no worse than a bound": _Rule(_no_worse, _NO_WORSE),
    "slope per seed": _Rule(_slope, _BEYOND),
    "steps to a target, censored": _Rule(_censored, _BEYOND, ("normal",)),
    f"{FAMILY} claims, extended once, after Holm": _Rule(_family, {"at the margin": {_ANY: 1 - LEVEL}}, ("normal",)),
}
