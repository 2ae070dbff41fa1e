r"""What a statistics set is, and the simplest: all values of a channel in this batch.

A set enters the mathematics of normalization by one thing, its averaging operator $E$, which takes values
``(N, C, *)`` to one mean a channel:

$$\hat x = (x - E x)\, r, \qquad r = (E (x - E x)^2 + \epsilon)^{-1/2},$$

$$\bar x = \gamma r \bigl(\bar y - E \bar y - \hat x\, E (\hat x\, \bar y)\bigr)$$

whenever $E$ is symmetric: an element weighs as much in the mean of another as that one does in its own. Means
over a batch, over the valid part of one, and over all processes are. So the rules are written once, in terms of
``average``; a set supplies it, together with moments that are right where plain sums are not.
"""

import abc

from torch import Tensor

from normscope.ops.moments import Moments
from normscope.ops.statistics import channel_axes, moments_of


class StatisticsSet(abc.ABC):
    """The values that share one mean and one variance in each channel."""

    @abc.abstractmethod
    def moments(self, x: Tensor) -> Moments:
        """Return count, mean and sum of squared deviations of each channel of the set.

        Args:
            x: Values ``(N, C, *)`` of any floating type.

        Returns:
            Moments ``(C,)``, float32 or wider, exact for any offset.
        """

    @abc.abstractmethod
    def average(self, t: Tensor, count: int | Tensor) -> Tensor:
        """Average each channel over the set: linear, symmetric, and differentiable to any order.

        Args:
            t: Values ``(N, C, *)``, float32 or wider.
            count: How many values the set has in each channel, as ``moments`` has it.

        Returns:
            The means ``(C,)``.
        """

    def keep(self, t: Tensor) -> Tensor:
        """Return ``t`` with zeros for the elements that do not belong to the set."""
        return t


class Batch(StatisticsSet):
    """All values of a channel in this batch: samples and positions."""

    def moments(self, x: Tensor) -> Moments:
        """Return the moments of each channel."""
        return moments_of(x)

    def average(self, t: Tensor, count: int | Tensor) -> Tensor:
        """Average each channel."""
        return t.mean(channel_axes(t))


BATCH = Batch()
