r"""The backward kernels: partial sums, their merge, and what is done to each element; or all in one.

With $g$ the gradient before the activation, and bars for means over a channel,

$$\bar\beta = \sum g, \qquad \bar\gamma = \sum g \hat x, \qquad
\bar x = \gamma r \bigl(g - \overline{g} - \hat x\, \overline{g \hat x} \bigr).$$

No mask of the activation is stored: its input is computed again from ``x`` and what the forward saved, by the same
instructions in the same order, so that its sign is the same.
"""

import triton
import triton.language as tl

from normscope.kernels.gpu._forward import SIZES
from normscope.kernels.gpu._tiles import (
    activate_backward,
    channels_of,
    fma,
    linear,
    scale_and_shift,
    tile_at,
    total,
)


@triton.jit
def _gradient(
    g,
    residual,
    at,
    mask,
    value,
    high,
    a,
    b,
    slope,
    ACTIVATION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """The gradient before the activation, over a tile."""
    grad = tl.load(g + at, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION != 0:
        z = linear(value, high, a, b)
        if HAS_RESIDUAL:
            z += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        grad = activate_backward(grad, z, slope, ACTIVATION)
    return grad


@triton.jit(do_not_specialize=[*SIZES, "slope"])
def partial_gradients(
    g,
    x,
    weight,
    bias,
    residual,
    saved,
    partial,  # (2, splits, channels): sum of g, sum of g times x-hat
    slope,
    channels,
    blocks,
    rows,
    lane_units,
    stride_units,
    across,
    tiles,
    per_program,
    ACTIVATION: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    PLANES: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Sums over one chunk of a channel, or of a block of channels."""
    program = tl.program_id(0)
    block = program % blocks
    split = program // blocks
    first = split * per_program
    last = tl.minimum(first + per_program, tiles)
    channel, present = channels_of(block, channels, PLANES, LANES)
    high = tl.load(saved + channel, mask=present, other=0.0)
    low = tl.load(saved + channels + channel, mask=present, other=0.0)
    rstd = tl.load(saved + 2 * channels + channel, mask=present, other=0.0)
    a, b = scale_and_shift(low, rstd, weight, bias, channel, present, HAS_WEIGHT, HAS_BIAS)
    sums = tl.zeros([ROWS, LANES], tl.float32)
    products = tl.zeros([ROWS, LANES], tl.float32)
    for t in range(first, last):
        corner, inner, mask, _ = tile_at(
            t, block, rows, lane_units, stride_units, across, PLANES, ROWS, LANES, ALIGN, WIDE
        )
        value = tl.load(x + corner + inner, mask=mask, other=0.0).to(tl.float32)
        grad = _gradient(g + corner, residual + corner, inner, mask, value, high, a, b, slope, ACTIVATION, HAS_RESIDUAL)
        sums += grad
        products = fma(grad, tl.where(mask, (value - high) - low, 0.0), products)
    splits = tl.cdiv(tiles, per_program)
    place = split.to(tl.int64) * channels + channel
    tl.store(partial + place, total(sums, PLANES), mask=present)
    tl.store(partial + splits.to(tl.int64) * channels + place, total(products, PLANES) * rstd, mask=present)


@triton.jit(do_not_specialize=["channels", "splits"])
def merge_gradients(partial, sums, channels, splits, SPLITS: tl.constexpr, LANES: tl.constexpr):
    """Add up the chunks of each channel: gradients of bias and weight, ``sums`` of shape ``(2, channels)``."""
    channel, present = channels_of(tl.program_id(0), channels, False, LANES)
    plane = splits.to(tl.int64) * channels
    shifts = tl.zeros([SPLITS, LANES], tl.float32)
    scales = tl.zeros([SPLITS, LANES], tl.float32)
    for at in range(0, splits, SPLITS):
        split = at + tl.arange(0, SPLITS)[:, None]
        mask = (split < splits) & present
        place = partial + split.to(tl.int64) * channels + channel
        shifts += tl.load(place, mask=mask, other=0.0)
        scales += tl.load(place + plane, mask=mask, other=0.0)
    tl.store(sums + channel, tl.sum(shifts, axis=0, keep_dims=True), mask=present)
    tl.store(sums + channels + channel, tl.sum(scales, axis=0, keep_dims=True), mask=present)


@triton.jit(do_not_specialize=[*SIZES, "slope", "inverse"])
def apply_backward(
    g,
    x,
    weight,
    bias,
    residual,
    saved,
    sums,
    dx,
    dresidual,
    slope,
    inverse,  # 1 / n
    channels,
    blocks,
    rows,
    lane_units,
    stride_units,
    across,
    tiles,
    per_program,
    WRITE_X: tl.constexpr,
    WRITE_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    PLANES: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradients of ``x`` and of the residual, whichever is wanted."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)  # from the end, as in the forward
    block = program % blocks
    first = (program // blocks) * per_program
    last = tl.minimum(first + per_program, tiles)
    channel, present = channels_of(block, channels, PLANES, LANES)
    high = tl.load(saved + channel, mask=present, other=0.0)
    low = tl.load(saved + channels + channel, mask=present, other=0.0)
    rstd = tl.load(saved + 2 * channels + channel, mask=present, other=0.0)
    a, b = scale_and_shift(low, rstd, weight, bias, channel, present, HAS_WEIGHT, HAS_BIAS)
    if WRITE_X:
        mean = tl.load(sums + channel, mask=present, other=0.0) * inverse
        slant = tl.load(sums + channels + channel, mask=present, other=0.0) * inverse * rstd
    for t in range(first, last):
        corner, inner, mask, _ = tile_at(
            t, block, rows, lane_units, stride_units, across, PLANES, ROWS, LANES, ALIGN, WIDE
        )
        value = tl.load(x + corner + inner, mask=mask, other=0.0).to(tl.float32)
        grad = _gradient(g + corner, residual + corner, inner, mask, value, high, a, b, slope, ACTIVATION, HAS_RESIDUAL)
        if WRITE_RESIDUAL:
            tl.store(dresidual + corner + inner, grad.to(dresidual.dtype.element_ty), mask=mask)
        if WRITE_X:
            out = a * fma((value - high) - low, -slant, grad - mean)
            tl.store(dx + corner + inner, out.to(dx.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[*SIZES, "slope", "inverse"])
def fused_backward(
    g,
    x,
    weight,
    bias,
    residual,
    saved,
    sums,
    dx,
    dresidual,
    slope,
    inverse,
    channels,
    rows,
    lane_units,
    stride_units,
    WRITE_X: tl.constexpr,
    WRITE_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    PLANES: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """All of it for channels of one tile: ``g`` and ``x`` are read once."""
    block = tl.program_id(0)
    channel, present = channels_of(block, channels, PLANES, LANES)
    high = tl.load(saved + channel, mask=present, other=0.0)
    low = tl.load(saved + channels + channel, mask=present, other=0.0)
    rstd = tl.load(saved + 2 * channels + channel, mask=present, other=0.0)
    a, b = scale_and_shift(low, rstd, weight, bias, channel, present, HAS_WEIGHT, HAS_BIAS)
    corner, inner, mask, _ = tile_at(
        block * 0, block, rows, lane_units, stride_units, 1, PLANES, ROWS, LANES, ALIGN, WIDE
    )
    value = tl.load(x + corner + inner, mask=mask, other=0.0).to(tl.float32)
    grad = _gradient(g + corner, residual + corner, inner, mask, value, high, a, b, slope, ACTIVATION, HAS_RESIDUAL)
    if WRITE_RESIDUAL:
        tl.store(dresidual + corner + inner, grad.to(dresidual.dtype.element_ty), mask=mask)
    d = tl.where(mask, (value - high) - low, 0.0)
    shift = total(grad, PLANES)
    scale = total(grad * d, PLANES) * rstd
    tl.store(sums + channel, shift, mask=present)
    tl.store(sums + channels + channel, scale, mask=present)
    if WRITE_X:
        out = a * fma(d, -(scale * inverse * rstd), grad - shift * inverse)
        tl.store(dx + corner + inner, out.to(dx.dtype.element_ty), mask=mask)
