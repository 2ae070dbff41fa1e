r"""Subtract the mean, divide by the standard deviation, then scale and shift: the operation under every norm.

Angle brackets are the mean over the statistics set, which has $n$ elements in a channel of ``(N, C, *)``: the
batch, or any set of `normscope.ops.sets`. Bars are cotangents.

$$\hat x = (x - \mu)\, r, \qquad r = (\sigma^2 + \epsilon)^{-1/2}, \qquad y = \gamma \hat x + \beta,$$

$$\bar x = \gamma r \bigl(\bar y - \langle \bar y \rangle - \hat x \langle \hat x\, \bar y \rangle \bigr)
+ \bigl(\bar\mu - r^2 \hat x\, \bar r \bigr) / n,
\qquad \bar\gamma = \sum \hat x\, \bar y, \qquad \bar\beta = \sum \bar y .$$

The Jacobian of $\hat x$ is symmetric, so its tangent rule is its cotangent rule.
Ioffe & Szegedy (2015), section 3; Santurkar et al. (2018), fact C.1.
"""

import torch
from torch import Tensor

from normscope.ops.sets.batch import BATCH, StatisticsSet
from normscope.ops.statistics import channel_axes, channelwise


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    over: StatisticsSet = BATCH,
    count: int | Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return ``y``; then one a channel: mean, reciprocal standard deviation, and unbiased variance."""
    n = size_of_set(x, count)
    mean = over.average(x, n)
    centred = over.keep(x - channelwise(mean, x))
    var = over.average(centred.square(), n)
    rstd = (var + eps).rsqrt()
    y = over.keep(affine(centred * channelwise(rstd, x), weight, bias))
    if isinstance(n, Tensor):  # of integers under torch.jit.trace, whose quotient would be float32
        return y, mean, rstd, var * n / (n - 1).clamp(min=1)
    return y, mean, rstd, var * (n / max(n - 1, 1))


def backward(
    g: Tensor | None,
    g_mean: Tensor | None,
    g_rstd: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    over: StatisticsSet = BATCH,
    count: int | Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the cotangents of ``x``, ``weight`` and ``bias``; a cotangent of None is zero."""
    xhat = over.keep((x - channelwise(mean, x)) * channelwise(rstd, x))
    return backward_of_xhat(g, g_mean, g_rstd, xhat, weight, rstd, over, count)


def backward_of_xhat(
    g: Tensor | None,
    g_mean: Tensor | None,
    g_rstd: Tensor | None,
    xhat: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    over: StatisticsSet = BATCH,
    count: int | Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Do what ``backward`` does from the standardized values."""
    axes, n = channel_axes(xhat), size_of_set(xhat, count)
    g_x = g_weight = g_bias = None
    if g is not None:
        g = over.keep(g)
        scale = rstd if weight is None else rstd * weight
        g_x = channelwise(scale, xhat) * project(g, xhat, over, n)
        g_weight, g_bias = (g * xhat).sum(axes), g.sum(axes)
    if g_mean is not None:
        g_x = (channelwise(g_mean / n, xhat) + (0 if g_x is None else g_x)).expand_as(xhat)
    if g_rstd is not None:
        g_x = channelwise(-g_rstd * rstd.square() / n, xhat) * xhat + (0 if g_x is None else g_x)
    return None if g_x is None else over.keep(g_x), g_weight, g_bias


def tangent(
    t: Tensor | None,
    t_weight: Tensor | None,
    t_bias: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    over: StatisticsSet = BATCH,
    count: int | Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the tangents of ``y``, mean and reciprocal standard deviation; a tangent of None is zero."""
    n = size_of_set(x, count)
    xhat = over.keep((x - channelwise(mean, x)) * channelwise(rstd, x))
    t = torch.zeros_like(x) if t is None else over.keep(t)
    t_y = affine(channelwise(rstd, x) * project(t, xhat, over, n), weight, t_bias)
    if t_weight is not None:
        t_y = t_y + xhat * channelwise(t_weight, x)
    return over.keep(t_y), over.average(t, n), -rstd.square() * over.average(t * xhat, n)


def project(t: Tensor, xhat: Tensor, over: StatisticsSet = BATCH, count: int | Tensor | None = None) -> Tensor:
    """Remove from each channel of ``t`` its mean and its component along ``xhat``."""
    n = size_of_set(t, count)
    return t - channelwise(over.average(t, n), t) - xhat * channelwise(over.average(t * xhat, n), t)


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift each channel of ``(N, C, *)``; None for a gain of 1, or a shift of 0."""
    if weight is None:
        return x if bias is None else x + channelwise(bias, x)
    if bias is None:
        return x * channelwise(weight, x)
    return torch.addcmul(channelwise(bias, x), x, channelwise(weight, x))


def size_of_set(x: Tensor, count: int | Tensor | None) -> int | Tensor:
    """Return how many values a channel has: those of the batch, where a set does not say."""
    return x.numel() // x.shape[1] if count is None else count
