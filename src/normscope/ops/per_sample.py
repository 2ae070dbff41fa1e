"""Layer, group, instance and RMS normalization: the operations of batch norm, a row of a sample as a channel.

A row is the set of values that share their statistics: all of a sample's channels, a group of them, one of them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from normscope.kernels import cpu
from normscope.ops.batch_norm import batch_norm_given
from normscope.ops.lp import Divisor, divide
from normscope.ops.normalize import standardize_affine
from normscope.ops.rows import columnwise, standardize_rows
from normscope.ops.shapes import ShapeError, check_channels, check_trailing
from normscope.ops.standardization import affine
from normscope.ops.statistics import wide
from normscope.ops.track import track
from normscope.ops.ways.choose import rows_by_kernel
from normscope.ops.ways.rows import Rows, by_kernel


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Standardize over the last axes; the numbers of ``torch.nn.functional.layer_norm``. Ba et al. (2016), eq. 3.

    Args:
        x: Values whose last axes are ``normalized_shape``, of any floating type; statistics are float32 or wider.
        normalized_shape: Sizes of the axes whose values share one mean and one variance.
        weight: Gain of each of their elements, or None for 1.
        bias: Shift of each of their elements, or None for 0.
        eps: Added to the variance, in squared units of ``x``.

    Returns:
        The normalized values in the type and shape of ``x``.

    Raises:
        ShapeError: The last axes of ``x``, or a parameter, are not of ``normalized_shape``; ``x`` is not floating.
    """
    rows = check_trailing(x, normalized_shape, weight, bias)
    if x.numel() == 0:
        return columnwise(x, weight, bias).to(x.dtype)
    if rows_by_kernel(x, weight, bias):
        return by_kernel(x, weight, bias, Rows(rows, eps))
    gain, shift = (None if values is None else values.reshape(-1) for values in (weight, bias))
    return standardize_rows(x.reshape(rows, -1), gain, shift, eps).view(x.shape).to(x.dtype)


def rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Divide by the root mean square over the last axes; the numbers of ``torch.nn.functional.rms_norm``.

    Zhang & Sennrich (2019), eq. 4.

    Args:
        x: Values whose last axes are ``normalized_shape``, of any floating type; the root is float32 or wider.
        normalized_shape: Sizes of the axes whose values share one root mean square.
        weight: Gain of each of their elements, or None for 1.
        eps: Added to the mean square, in squared units of ``x``; None for the spacing at 1 of the type the
            statistics are in.

    Returns:
        The normalized values in the type and shape of ``x``.

    Raises:
        ShapeError: The last axes of ``x``, or a parameter, are not of ``normalized_shape``; ``x`` is not floating.
    """
    rows = check_trailing(x, normalized_shape, weight)
    if x.numel() == 0:
        return columnwise(x, weight, None).to(x.dtype)
    eps = torch.finfo(wide(x.dtype)).eps if eps is None else eps
    if rows_by_kernel(x, weight):
        return by_kernel(x, weight, None, Rows(rows, eps, centred=False))
    y, *_ = divide(x.reshape(1, rows, -1), Divisor(2, centre=False), eps)
    return columnwise(y.view(x.shape), weight, None).to(x.dtype)


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Standardize each group of neighbouring channels of each sample. Wu & He (2018), eq. 7.

    The numbers of ``torch.nn.functional.group_norm``, to rounding; also where a large mean costs torch its digits.

    Args:
        x: Values ``(N, C, *)`` of any floating type and layout; statistics are float32 or wider.
        num_groups: Groups ``G``, a divisor of ``C``.
        weight: Gain of each channel ``(C,)``, or None for 1.
        bias: Shift of each channel ``(C,)``, or None for 0.
        eps: Added to the variance, in squared units of ``x``.

    Returns:
        The normalized values in the type, shape and layout of ``x``.

    Raises:
        ShapeError: ``x`` has no channel axis or is not floating; ``C`` is no multiple of ``num_groups``; a parameter
            does not have one value a channel.
    """
    check_channels(x, ("weight", "bias"), (weight, bias))
    if num_groups < 1 or x.shape[1] % num_groups:
        raise ShapeError(f"{x.shape[1]} channels do not split into {num_groups} equal groups: give a divisor")
    if x.numel() == 0:
        return affine(x, weight, bias).to(x.dtype)
    if rows_by_kernel(x, weight, bias):
        return _like(by_kernel(x, weight, bias, Rows(x.shape[0] * num_groups, eps, num_groups)), x)
    xhat = standardize_rows(x.reshape(x.shape[0] * num_groups, -1), None, None, eps)
    return affine(_like(xhat, x), weight, bias).to(x.dtype)


def instance_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float | Tensor = 0.1,
) -> Tensor:
    """Standardize each channel of each sample. Ulyanov et al. (2016), section 2.

    The numbers of ``torch.nn.functional.instance_norm``, to rounding; also where a large mean costs torch its digits.

    Args:
        x: Values ``(N, C, *)`` of any floating type and layout; statistics are float32 or wider.
        weight: Gain of each channel ``(C,)``, or None for 1.
        bias: Shift of each channel ``(C,)``, or None for 0.
        eps: Added to the variance, in squared units of ``x``.
        running_mean: Mean of each channel ``(C,)``: moved in place toward the average of the samples' means.
        running_var: Variance of each channel ``(C,)``: likewise, toward the average of their unbiased variances.
        use_input_stats: Normalize by the statistics of each sample; else by the running ones.
        momentum: Share of this batch in the running statistics.

    Returns:
        The normalized values in the type, shape and layout of ``x``.

    Raises:
        ShapeError: ``x`` has no channel axis or is not floating; a parameter does not have one value a channel; a
            sample has one value a channel; running statistics are wanted and missing.
    """
    given = (weight, bias, running_mean, running_var)
    check_channels(x, ("weight", "bias", "running_mean", "running_var"), given)
    if use_input_stats and math.prod(x.shape[2:]) == 1:
        raise ShapeError(
            f"Expected more than 1 spatial element when training, got input size {tuple(x.shape)}: one value has no "
            "variance; use layer or group normalization here"
        )
    if x.numel() == 0:
        return affine(x, weight, bias).to(x.dtype)
    if not use_input_stats:
        if running_mean is None or running_var is None:
            raise ShapeError("running_mean and running_var are needed here: give them, or use_input_stats=True")
        return batch_norm_given(x, running_mean, running_var, weight, bias, eps=eps)
    rows = x.shape[0] * x.shape[1]
    if rows_by_kernel(x, weight, bias):
        return _like(_instances_by_kernel(x, weight, bias, eps, running_mean, running_var, momentum), x)
    if running_mean is None and running_var is None:
        xhat = standardize_rows(x.reshape(rows, -1), None, None, eps)
    else:
        xhat, shift, low, _, var = standardize_affine(x.to(wide(x.dtype)).reshape(1, rows, -1), None, None, eps)
        means, variances = (values.view(x.shape[:2]).mean(0) for values in (shift + low.detach(), var.detach()))
        track(running_mean, running_var, means, variances, momentum)
    return affine(_like(xhat, x), weight, bias).to(x.dtype)


def _instances_by_kernel(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float | Tensor,
) -> Tensor:
    saved: list[Tensor] = []
    y = by_kernel(x, weight, bias, Rows(x.shape[0] * x.shape[1], eps, x.shape[1]), saved)
    if running_mean is not None or running_var is not None:
        n = math.prod(x.shape[2:])
        means, variances = (saved[0][row].view(x.shape[:2]).mean(0) for row in (cpu.MEAN, cpu.VAR))
        track(running_mean, running_var, means, variances * (n / (n - 1)), momentum)
    return y


def _like(xhat: Tensor, x: Tensor) -> Tensor:
    """Give values in the order of ``x``'s elements its shape, and its layout if that is channels-last."""
    xhat = xhat.view(x.shape)
    if not x.is_contiguous() and x.ndim in (4, 5) and not torch._C._are_functorch_transforms_active():
        channels_last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        if x.is_contiguous(memory_format=channels_last):
            xhat = xhat.contiguous(memory_format=channels_last)
    return xhat
