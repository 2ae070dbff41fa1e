r"""Merge means and sums of squared deviations of parts into those of the whole.

With counts $n$, means $\mu$ and sums of squared deviations $M$, and
$\delta = \mu_b - \mu_a$ (Chan, Golub & LeVeque, 1979, eq. 2.1),

$$n = n_a + n_b, \quad \mu = \mu_a + \delta\, n_b / n, \quad M = M_a + M_b + \delta^2 n_a n_b / n .$$

A mean of 1e6 in float32 lies on a grid of 0.06, so the part of it that falls between the grid points is carried
along: the mean is ``mean + low``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """What a set of values says about its mean and variance.

    Attributes:
        count: How many values each statistic is taken over: a number; or a tensor that broadcasts to the mean, where
            the count is itself computed from values.
        mean: The mean, rounded to its own precision.
        low: What the mean has beyond ``mean``; add it last.
        m2: Sum of squared deviations from the mean, in squared units of the values.
    """

    count: int | Tensor
    mean: Tensor
    low: Tensor
    m2: Tensor

    def variance(self, *, unbiased: bool = False) -> Tensor:
        """Return the variance; NaN where there are too few values for one."""
        over = self.count - int(unbiased)
        if isinstance(over, Tensor):
            return torch.where(over > 0, self.m2 / over, torch.nan)
        return self.m2 / over if over > 0 else self.m2 * torch.nan

    def detach(self) -> "Moments":
        """Return the same numbers, constants to autograd."""
        return Moments(self.count, self.mean.detach(), self.low.detach(), self.m2.detach())


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of the union of two disjoint sets of values.

    Merging is commutative and associative to rounding; a set of no values changes nothing, if its mean is finite where
    its count is a tensor.

    Args:
        a: Moments of one set.
        b: Moments of the other, of the same shape.

    Returns:
        The moments of both together.

    Example:
        >>> one, two = (Moments(1, torch.tensor(v), torch.tensor(0.0), torch.tensor(0.0)) for v in (1.0, 3.0))
        >>> merge(one, two).mean, merge(one, two).variance()
        (tensor(2.), tensor(1.))
    """
    count = a.count + b.count
    share: float | Tensor
    if isinstance(count, Tensor):
        share = b.count / count.clamp(min=1)
    elif a.count == 0 or b.count == 0:
        return a if b.count == 0 else b
    else:
        share = b.count / count
    delta = (b.mean - a.mean) + (b.low - a.low)
    mean, low = two_sum(a.mean, delta * share + a.low)
    return Moments(count, mean, low, a.m2 + b.m2 + delta.square() * (a.count * share))


def merge_all(parts: Moments) -> Moments:
    """Return the moments of the union of sets that are stacked along the first axis.

    Halves are merged with halves, so that a thousand parts take ten steps and lose as little by rounding.

    Args:
        parts: Moments ``(parts, *)``; a count that is a tensor has the parts as its first axis too.

    Returns:
        The moments ``(*,)`` of all together.
    """
    n = parts.mean.shape[0]
    same = parts.count
    count = same if isinstance(same, Tensor) else parts.mean.new_full((n, *(1,) * (parts.mean.ndim - 1)), same)
    rows: tuple[Tensor, ...] = (count, parts.mean, parts.low, parts.m2)
    while (half := rows[0].shape[0] // 2) > 0:
        m = merge(Moments(*(row[:half] for row in rows)), Moments(*(row[half : 2 * half] for row in rows)))
        rows = tuple(
            torch.cat([torch.as_tensor(new), row[2 * half :]])
            for new, row in zip((m.count, m.mean, m.low, m.m2), rows, strict=True)
        )
    total, mean, low, m2 = (row[0] for row in rows)
    return Moments(total if isinstance(same, Tensor) else n * same, mean, low, m2)


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded sum and its rounding error, exactly (Knuth, 1969, 4.2.2 theorem B)."""
    total = a + b
    from_b = total - a
    return total, (a - (total - from_b)) + (b - from_b)
