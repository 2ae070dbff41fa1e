r"""Confidence intervals over seeds: paired t, and the bias-corrected accelerated bootstrap.

Seeds are the replicates, never steps. The t interval is Student's. The bootstrap is BCa (Efron, B., "Better Bootstrap
Confidence Intervals", JASA 82 (1987) 171-185, eqs. 2.3 and 4.4): with $\hat G$ the bootstrap distribution of the
mean, the end at probability $\alpha$ is

$$\hat G^{-1}\Bigl(\Phi\bigl(z_0 + \tfrac{z_0 + z_\alpha}{1 - a\,(z_0 + z_\alpha)}\bigr)\Bigr),
\quad z_0 = \Phi^{-1}(\hat G(\bar x)),
\quad a = \frac{\sum_i (x_i - \bar x)^3}{6\,\bigl(\sum_i (x_i - \bar x)^2\bigr)^{3/2}} .$$

The acceleration $a$ is the jackknife's, which has this closed form for a mean.

**Why** ``method="auto"`` **never trusts BCa alone.** A bootstrap of few values is too narrow: between two arms that do
not differ, a nominal one-sided 2.5 % interval excludes zero in 25 % of comparisons at n = 2, 14 % at n = 3, 7 % at
n = 5 and 5 % at n = 10 (normal values), and in 6 to 7 % at n = 10 for Laplace values and t with three degrees of
freedom. Student's interval keeps its level for all of these, but misses on the long side of skewed values, where BCa
reaches out. Taking the outer ends keeps the level in both cases, at the price of some width.

Coverage at a nominal 95 %, measured over 10,000 samples (standard error 0.2 %, bootstrap with 2,000 resamples), of
``"auto"`` as it is for differences:

===================  ====  ======  ===========================================
values               n     method  coverage (interval above, below the truth)
===================  ====  ======  ===========================================
normal               10    t       95.0 % (2.6 %, 2.5 %)
normal               3     auto    95.0 % (2.6 %, 2.3 %)
normal               10    auto    95.3 % (2.4 %, 2.3 %)
Laplace              10    auto    95.9 % (2.0 %, 2.1 %)
t, 3 d.f.            10    auto    96.2 % (1.8 %, 2.0 %)
uniform              3     auto    92.3 % (3.7 %, 4.0 %)
log-normal           20    t       86.7 % (0.2 %, 13.1 %)
log-normal           20    bca     87.4 % (2.4 %, 10.2 %)
log-normal           20    auto    90.0 % (0.2 %, 9.9 %)
===================  ====  ======  ===========================================

**Skewed values of one arm.** A difference of two arms is no more skewed to one side than to the other if they are
alike; a value that compares nothing (a loss of accuracy, a distance) may be. Student's interval then ends too soon on
the side of the long tail, and the bootstrap hardly helps at ten seeds. ``"auto"`` therefore takes in the ends of Hall's
interval as well where values are no differences (Hall, P., "On the removal of skewness by transformation", J. Royal
Statistical Society B 54 (1992) 221-228): with $W = (\bar x - \mu) / s$ and the skewness $g$,

$$h(W) = W + \tfrac{g}{3} W^2 + \tfrac{g^2}{27} W^3 + \tfrac{g}{6 n}$$

is monotone and nearly symmetric, and $\sqrt n\, h(W)$ is read as Student's t. It halves the error and does not
remove it; share of samples whose interval ends short of the truth on the long side, 2.5 % being nominal
(4,000 samples, standard error 0.2 to 0.6 %):

===================  ====  ======  ======  ====================
values               n     t       auto    auto, no difference
===================  ====  ======  ======  ====================
normal               10    2.5 %   2.5 %   2.1 %
gamma, shape 2       10    6.7 %   6.5 %   4.4 %
exponential          10    9.8 %   9.0 %   5.1 %
log-normal           10    17 %    15 %    9.8 %
exponential          20    8.1 %   6.9 %   4.4 %
===================  ====  ======  ======  ====================
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from normscope._errors import DataError, UsageError
from normscope.records import Estimate
from normscope.stats._values import Floats, as_positive, as_values, check_level

Method = Literal["auto", "t", "bca"]

#: From this many seeds on, values that look normal get the t interval alone.
LARGE = 10
#: Name of the method that takes the outer ends of the t and the BCa interval.
WIDER = "wider of t and BCa bootstrap"
#: Names of the same with Hall's interval, where values are no differences and skewed.
SKEWED = ("wider of t and Hall's", "wider of t, Hall's and BCa bootstrap")
#: Shapiro-Wilk p-value above which values are taken to look normal.
NORMAL = 0.05


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """The bootstrap distribution of a mean, with Efron's two corrections.

    Attributes:
        means: Sorted bootstrap means, shape ``(draws,)``.
        bias: $z_0$, dimensionless.
        acceleration: $a$, dimensionless.
    """

    means: Floats
    bias: float
    acceleration: float

    def quantile(self, probability: float) -> float:
        """Return the BCa end point at ``probability``."""
        from scipy.special import ndtr, ndtri

        shifted = self.bias + ndtri(probability)
        corrected = ndtr(self.bias + shifted / (1 - self.acceleration * shifted))
        return float(np.quantile(self.means, corrected))

    def probability(self, value: float) -> float:
        """Return the probability at which the end point is ``value``: the inverse of `quantile`.

        Never below ``1 / (draws + 1)`` nor above one minus that: a bootstrap says nothing of smaller probabilities.
        """
        from scipy.special import ndtr, ndtri

        draws = self.means.size
        least = 1 / (draws + 1)
        # The inverse of linear interpolation between order statistics; in a run of ties, its middle.
        left, right = np.searchsorted(self.means, value, "left"), np.searchsorted(self.means, value, "right")
        if right == 0:
            return least
        if left == draws:
            return 1 - least
        if left == right:
            step = (value - self.means[left - 1]) / (self.means[left] - self.means[left - 1])
            raw = (left - 1 + step) / (draws - 1)
        else:
            raw = (left + right - 1) / 2 / (draws - 1)
        if raw <= 0 or raw >= 1:
            return least if raw <= 0 else 1 - least
        shifted = ndtri(raw) - self.bias
        found = ndtr(shifted / (1 + self.acceleration * shifted) - self.bias)
        return float(np.clip(found, least, 1 - least))


def bootstrap(values: Floats, *, draws: int = 10_000, seed: int = 0) -> Bootstrap:
    """Resample the mean of ``values``.

    The values are sorted first and every resample is drawn together with its mirror image (the k-th smallest value
    replaced by the k-th largest). So the order of seeds does not matter, and negating the values negates the interval:
    exact laws instead of laws up to Monte-Carlo error.

    Args:
        values: Shape ``(n,)``, at least two of them, not all equal.
        draws: Number of resamples; an odd number is raised by one.
        seed: Seed of the resampling.
    """
    from scipy.special import ndtri

    ordered = np.sort(values)
    n = ordered.size
    index = np.random.default_rng(seed).integers(0, n, (n, (draws + 1) // 2))
    # Summed seed by seed, so that memory holds one row at a time whatever n is.
    means = np.sort(np.concatenate([ordered[index].mean(axis=0), ordered[n - 1 - index].mean(axis=0)]))
    centre = ordered.mean()
    # Means that equal the sample's own but for rounding count as ties, half of them below.
    blur = 8 * np.finfo(np.float64).eps * np.abs(ordered).max()
    below = np.searchsorted(means, centre - blur, "left") + np.searchsorted(means, centre + blur, "right")
    share = np.clip(below / (2 * means.size), 1 / (means.size + 1), means.size / (means.size + 1))
    deviation = (ordered - centre) / np.abs(ordered - centre).max()
    acceleration = (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5)
    return Bootstrap(means, float(ndtri(share)), float(acceleration))


def t_ends(values: Floats, level: float) -> tuple[float, float]:
    """Return the ends of Student's interval of the mean; ``values`` has shape ``(n,)``, n at least 2."""
    from scipy.special import stdtrit

    n = values.size
    half = stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(n)
    return float(values.mean() - half), float(values.mean() + half)


def hall_ends(values: Floats, level: float) -> tuple[float, float]:
    """Return the ends of Hall's interval of the mean of skewed values; see the module's page.

    Args:
        values: Shape ``(n,)``, n at least 2, not all equal.
        level: Confidence level.
    """
    from scipy.special import stdtrit

    third, offset = _skewness(values)
    n, spread = values.size, float(values.std(ddof=1))
    quantile = float(stdtrit(n - 1, (1 + level) / 2)) / np.sqrt(n)

    def inverse(y: float) -> float:
        y -= offset
        if abs(third * y) < 1e-6:  # where the cube root loses the digits that the series keeps
            return y - third * y * y
        return float((np.cbrt(1 + 3 * third * y) - 1) / third)

    mean = float(values.mean())
    return mean - spread * inverse(quantile), mean - spread * inverse(-quantile)


def hall_p(values: Floats, bound: float) -> float:
    """Return the two-sided p-value of "the mean is ``bound``" that belongs to `hall_ends`.

    It is one where Hall's interval lies on the other side of the bound than the mean does: then they do not agree
    that anything is excluded.
    """
    from scipy.special import stdtr

    third, offset = _skewness(values)
    w = (values.mean() - bound) / values.std(ddof=1)
    transformed = w + third * w * w + third * third * w**3 / 3 + offset
    if transformed * w < 0:
        return 1.0
    return min(1.0, 2 * float(stdtr(values.size - 1, -abs(transformed) * np.sqrt(values.size))))


def _skewness(values: Floats) -> tuple[float, float]:
    """Return a third of the skewness, and the skewness over 6 n."""
    deviation = values - values.mean()
    deviation = deviation / np.abs(deviation).max()  # no power of it overflows or vanishes
    skewness = float((deviation**3).mean() / (deviation**2).mean() ** 1.5)
    return skewness / 3, skewness / (6 * values.size)


def looks_normal(values: Floats) -> bool:
    """Say whether the t interval is trusted alone: at least `LARGE` values and a Shapiro-Wilk p above `NORMAL`."""
    from scipy.stats import shapiro

    return values.size >= LARGE and float(shapiro(values).pvalue) > NORMAL


def interval(
    values: ArrayLike,
    *,
    scale: str = "value",
    level: float = 0.95,
    method: Method = "auto",
    draws: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Estimate the mean of one number per seed, with its confidence interval.

    Args:
        values: One number per seed (a slope, a log-ratio already formed, a gain), shape ``(n,)``.
        scale: What the numbers are; kept in the estimate.
        level: Confidence level of the two-sided interval, in (0, 1).
        method: ``"t"``, ``"bca"``, or ``"auto"``: t when n is at least 10 and the values look normal (Shapiro-Wilk
            p > 0.05), else the outer ends of the t and the BCa interval (see the module's page for why not BCa alone);
            where the values are no differences, by ``scale``, the outer ends of these and Hall's interval.
        draws: Bootstrap resamples.
        seed: Seed of the resampling; the result is a function of the values and this number.

    Returns:
        The mean and its interval. One seed gives an infinite interval; equal values give the point itself.

    Raises:
        DataError: No value, or a value that is not finite.
        UsageError: ``level``, ``scale`` or ``method`` is not one of those above.
    """
    array = as_values(values)
    check_level(level)
    if scale not in SCALES:
        raise UsageError(f"scale {scale!r} is not known; use {', '.join(map(repr, SCALES))}")
    if method not in ("auto", "t", "bca"):
        raise UsageError(f"method {method!r} is not known; use 'auto', 't' or 'bca'")
    n = int(array.size)
    if n == 1:
        return Estimate(float(array[0]), -np.inf, np.inf, level, n, "single seed", scale)
    if np.ptp(array) == 0:
        return Estimate(float(array[0]), float(array[0]), float(array[0]), level, n, "all seeds equal", scale)
    # Summed in sorted order, so that the order of seeds cannot change even the last bit.
    ordered = np.sort(array)
    point = float(ordered.mean())
    ends, name = [], "BCa bootstrap"
    if method != "bca":
        ends, name = [t_ends(ordered, level)], "paired t" if scale in PAIRED else "t"
    normal = method == "auto" and looks_normal(ordered)
    if method == "auto" and scale not in PAIRED:
        ends.append(hall_ends(ordered, level))
        name = SKEWED[0]
    if method == "bca" or (method == "auto" and not normal):
        resampled = bootstrap(ordered, draws=draws, seed=seed)
        ends.append((resampled.quantile((1 - level) / 2), resampled.quantile((1 + level) / 2)))
        if method == "auto":
            name = WIDER if scale in PAIRED else SKEWED[1]
    lows, highs = zip(*ends, strict=True)
    return Estimate(point, min(lows), max(highs), level, n, name, scale)


#: Scales on which each value already compares two arms of one seed.
PAIRED = ("log-ratio", "difference")
#: All scales of an estimate.
SCALES = (*PAIRED, "value", "ratio", "error")


def paired_values(treated: ArrayLike, control: ArrayLike, scale: str) -> Floats:
    """Compare two arms seed by seed.

    Args:
        treated: One number per seed, shape ``(n,)``.
        control: The same seeds in the same order, shape ``(n,)``.
        scale: ``"log-ratio"`` for log(treated / control), ``"difference"`` for treated - control.

    Raises:
        DataError: Different numbers of seeds, a value that is not finite, or for log-ratios not positive.
        UsageError: Another scale.
    """
    if scale not in PAIRED:
        raise UsageError(f"scale {scale!r} is not known; use 'log-ratio' or 'difference'")
    form = as_positive if scale == "log-ratio" else as_values
    first, second = form(treated, "treated values"), form(control, "control values")
    if first.size != second.size:
        raise DataError(f"{first.size} treated values against {second.size} control values; arms are paired by seed")
    # A difference of logarithms overflows for no pair of finite numbers; a logarithm of the quotient may.
    return np.log(first) - np.log(second) if scale == "log-ratio" else first - second


def paired_interval(
    treated: ArrayLike,
    control: ArrayLike,
    *,
    scale: Literal["log-ratio", "difference"] = "log-ratio",
    level: float = 0.95,
    method: Method = "auto",
    draws: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Estimate how two arms differ, paired by seed.

    Positive quantities (steps, losses, norms, curvatures) are compared as log-ratios, accuracies as differences.

    Args:
        treated: One number per seed, shape ``(n,)``.
        control: The same seeds in the same order, shape ``(n,)``.
        scale: ``"log-ratio"`` for the mean of log(treated / control), ``"difference"`` for that of treated - control.
        level: Confidence level of the two-sided interval.
        method: As in `interval`.
        draws: Bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The mean and its interval on ``scale``.

    Raises:
        DataError: Different numbers of seeds, none, or values that cannot be compared on this scale.
        UsageError: An unknown scale, method or level.

    Example:
        >>> estimate = paired_interval([2.0, 2.2, 1.9], [1.0, 1.0, 1.0])
        >>> estimate.low > 0  # the treated arm is larger
        True
    """
    compared = paired_values(treated, control, scale)
    return interval(compared, scale=scale, level=level, method=method, draws=draws, seed=seed)
