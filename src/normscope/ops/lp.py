r"""Centre each channel and divide it by a norm: lp normalization, and RMS normalization without the centring.

Each channel of ``(N, C, *)`` has $n$ elements; angle brackets are their mean, bars are cotangents. The norm is
taken of $b$, which is $x$ as it comes or $x - \mu$, and is an average: independent of $n$.

$$y = (x - \mu)\, r, \qquad r = (s^2 + \epsilon)^{-1/2}, \qquad
s = k \langle |b|^p \rangle^{1/p} \;\text{ or }\; k \max |b|,$$

$$\bar x = r (\bar y - \langle \bar y \rangle) + 2 q \Bigl(\overline{s^2} - \tfrac12 r^3
\textstyle\sum \bar y\, (x - \mu)\Bigr) + \bar\mu / n, \qquad q = \tfrac12\, \partial s^2 / \partial x .$$

For $p = 1$, $n q = k^2 \langle |b| \rangle\, \mathrm{sign}\, b$; for 2, $n q = k^2 b$; for the
maximum, $q = k^2 b$ shared among the elements that attain it, and 0 elsewhere. Where $b = x - \mu$, the
mean of $q$ is taken off. With $p = 2$ and $b = x - \mu$ this is batch normalization.
Santurkar et al. (2018), section 3.3; Hoffer et al. (2018), section 4; Zhang & Sennrich (2019), eq. 4.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from normscope._errors import UsageError
from normscope.ops.batch_norm import batch_norm_given
from normscope.ops.shapes import ShapeError, check_channels
from normscope.ops.standardization import affine
from normscope.ops.statistics import channel_axes, channelwise, shifted
from normscope.ops.track import track
from normscope.ops.ways.choose import is_written_out

ORDERS = (1.0, 2.0, math.inf)


class Divisor(NamedTuple):
    """The norm that a channel is divided by.

    Attributes:
        p: Order of the norm: 1, 2 or ``math.inf``.
        centre: Whether the mean is subtracted before the division.
        centred: Whether the norm is of the values less their mean.
        factor: $k$, by which the norm is multiplied.
    """

    p: float
    centre: bool = True
    centred: bool = False
    factor: float = 1.0


def forward(x: Tensor, shift: Tensor, by: Divisor, eps: float) -> tuple[Tensor, ...]:
    """Return ``y``; then one a channel: what the mean has beyond ``shift``, and the squared norm."""
    axes = channel_axes(x)
    d = x - channelwise(shift, x)
    low = d.mean(axes) if by.centre or by.centred else torch.zeros_like(shift)
    values, base = _parts(x, shift, low, by)
    if by.p == 2:
        power = base.square().mean(axes)
    else:
        power = (base.abs().mean(axes) if by.p == 1 else base.abs().amax(axes)).square()
    power = power * by.factor**2
    return values * channelwise((power + eps).rsqrt(), x), low, power


def backward(
    g: Tensor | None,
    g_low: Tensor | None,
    g_power: Tensor | None,
    x: Tensor,
    shift: Tensor,
    low: Tensor,
    power: Tensor,
    by: Divisor,
    eps: float,
) -> Tensor:
    """Return the cotangent of ``x``; a cotangent of None is zero."""
    axes, n = channel_axes(x), x.numel() // x.shape[1]
    values, base = _parts(x, shift, low, by)
    found = torch.zeros_like(x)
    onto_power = torch.zeros_like(power) if g_power is None else g_power
    if g is not None:
        rstd = (power + eps).rsqrt()
        onto_power = onto_power - rstd.pow(3) * (g * values).sum(axes) / 2
        found = (_centred(g) if by.centre else g) * channelwise(rstd, x)
    found = found + 2 * channelwise(onto_power, x) * _half_slope(base, by)
    if g_low is not None and (by.centre or by.centred):
        found = found + channelwise(g_low / n, x)
    return found


def tangent(
    t: Tensor, x: Tensor, shift: Tensor, low: Tensor, power: Tensor, by: Divisor, eps: float
) -> tuple[Tensor, ...]:
    """Return the tangents of ``y``, of what the mean has beyond ``shift``, and of the squared norm."""
    axes = channel_axes(x)
    values, base = _parts(x, shift, low, by)
    rstd = (power + eps).rsqrt()
    t_power = 2 * (t * _half_slope(base, by)).sum(axes)
    t_y = (_centred(t) if by.centre else t) * channelwise(rstd, x)
    t_y = t_y - values * channelwise(rstd.pow(3) * t_power / 2, x)
    return t_y, t.mean(axes) if by.centre or by.centred else torch.zeros_like(low), t_power


def _parts(x: Tensor, shift: Tensor, low: Tensor, by: Divisor) -> tuple[Tensor, Tensor]:
    """Return the dividend, and the values whose norm is the divisor."""
    about_mean = x - channelwise(shift, x) - channelwise(low, x)
    return about_mean if by.centre else x, about_mean if by.centred else x


def _half_slope(base: Tensor, by: Divisor) -> Tensor:
    """Return half the derivative of the squared norm with respect to ``x``."""
    axes, n = channel_axes(base), base.numel() // base.shape[1]
    if by.p == 2:
        q = base / n
    elif by.p == 1:
        q = base.abs().mean(axes, keepdim=True) * base.sign() / n
    else:
        size = base.detach().abs()
        attains = (size == size.amax(axes, keepdim=True)).to(base.dtype)
        q = base * attains / attains.sum(axes, keepdim=True)
    return (_centred(q) if by.centred else q) * by.factor**2


def _centred(t: Tensor) -> Tensor:
    return t - t.mean(channel_axes(t), keepdim=True)


class _Divide(Function):
    """The three rules above; torch.func, which wants another form of Function, does not come here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, by: Divisor, eps: float) -> tuple[Tensor, ...]:
        y, low, power = forward(x, shift, by, eps)
        ctx.by, ctx.eps = by, eps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, shift, low, power)
        ctx.save_for_forward(x, shift, low, power)
        return y, low, power

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        g, g_low, g_power = cotangents
        x, shift, low, power = ctx.saved_tensors
        return backward(g, g_low, g_power, x, shift, low, power, ctx.by, ctx.eps), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        x, shift, low, power = ctx.saved_tensors
        return tangent(tangents[0], x, shift, low, power, ctx.by, ctx.eps)


def divide(x: Tensor, by: Divisor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divide each channel by a norm of it.

    Args:
        x: Values ``(N, C, *)``, at least one a channel.
        by: Which norm, and what is centred.
        eps: Added to the squared norm, in squared units of ``x``.

    Returns:
        The quotient, then ``(C,)`` each a constant near the mean, what the mean has beyond it, and the squared norm;
        all float32 or wider. The first, third and fourth are differentiable.
    """
    d, shift = shifted(x)
    if not by.centre and not by.centred:
        shift = torch.zeros_like(shift)
    y, low, power = (forward if is_written_out() else _Divide.apply)(x.to(d.dtype), shift, by, eps)
    return y, shift, low, power


@functools.cache
def gaussian_factor(p: float, n: int) -> float:
    r"""Return the factor between the average norm of ``n`` centred Gaussian values and their standard deviation.

    $\sqrt{\pi/2}$ for $p = 1$ and 1 for 2, in the limit of large ``n``. For the maximum, one over
    $E \max |z| = \int_0^\infty 1 - \mathrm{erf}(t/\sqrt 2)^n\, dt$, of which $\sqrt{2 \ln n}$ is the
    leading term. (The $(1 + \sqrt{\pi \ln 4}) / (2 \sqrt{2 \ln n})$ in the code of Hoffer et al. goes with the
    average of the ten largest; with the maximum it gives 1.3 to 1.4 standard deviations.)

    Args:
        p: 1, 2 or ``math.inf``.
        n: How many values the norm is taken over.
    """
    if p == math.inf:
        step, most = 0.01, 12.0  # the trapezoidal rule is spectral here but for the slope at 0, which is 0 for n > 1
        return 1 / (step * (0.5 + sum(1 - math.erf(i * step / math.sqrt(2)) ** n for i in range(1, int(most / step)))))
    return math.sqrt(math.pi / 2) if p == 1 else 1.0


# What torch.compiler.assume_constant_result does. Called here, it would import the compiler, which takes longer than
# the rest of the package together.
gaussian_factor._dynamo_marked_constant = True  # type: ignore[attr-defined]


def lp_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    p: float = 2,
    eps: float = 1e-5,
    centred: bool = False,
    gaussian: bool = False,
    running_mean: Tensor | None = None,
    running_norm: Tensor | None = None,
    training: bool = True,
    momentum: float | Tensor = 0.1,
) -> Tensor:
    """Centre each channel and divide it by its average lp norm, then scale and shift it.

    Args:
        x: Values ``(N, C, *)`` of any floating type; statistics are float32 or wider.
        weight: Gain of each channel ``(C,)``, or None for 1.
        bias: Shift of each channel ``(C,)``, or None for 0.
        p: Order of the norm: 1, 2 or ``math.inf``.
        eps: Added to the squared norm, in squared units of ``x``.
        centred: Take the norm after the mean is taken off, as Hoffer et al. do; else before, as Santurkar et al. do.
        gaussian: Multiply the norm by ``gaussian_factor``.
        running_mean: Mean of each channel ``(C,)``: moved in place in training, used outside it.
        running_norm: Norm of each channel ``(C,)``, in units of ``x``: likewise.
        training: Normalize by the statistics of this batch; else by the running ones.
        momentum: Share of this batch in the running statistics.

    Returns:
        The normalized values in the type and shape of ``x``.

    Raises:
        UsageError: ``p`` is not 1, 2 or infinity.
        ShapeError: ``x`` has no channel axis; a parameter does not have one value a channel; one value a channel in
            training; running statistics are wanted and missing.
    """
    if p not in ORDERS:
        raise UsageError(f"p is the order of the norm: give 1, 2 or math.inf, not {p}")
    given = (weight, bias, running_mean, running_norm)
    check_channels(x, ("weight", "bias", "running_mean", "running_norm"), given)
    if x.numel() == 0:  # nothing to take statistics of: the running ones stay as they are
        return affine(x, weight, bias).to(x.dtype)
    if not training:
        if running_mean is None or running_norm is None:
            raise ShapeError("running_mean and running_norm are needed outside training: give them, or training=True")
        return batch_norm_given(x, running_mean, running_norm.square(), weight, bias, eps=eps)
    n = x.numel() // x.shape[1]
    if n == 1:
        raise ShapeError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}: "
            "a value less its own mean is 0; use a larger batch, or call .eval()"
        )
    factor = 1.0
    if gaussian:  # under torch.jit.trace n is a tensor, which no cache is to hold
        factor = gaussian_factor.__wrapped__(p, n.double()) if isinstance(n, Tensor) else gaussian_factor(p, n)
    y, shift, low, power = divide(x, Divisor(p, True, centred, factor), eps)
    if running_mean is not None or running_norm is not None:
        track(running_mean, running_norm, shift + low.detach(), power.detach().sqrt(), momentum)
    return affine(y, weight, bias).to(x.dtype)
