r"""The forward kernels: partial moments, their merge, and what is done to each element; or all in one.

Moments of a chunk are shifted sums: a value near the chunk's mean is taken off first, which for nearby floats is exact,
so that an offset costs no digits. The value is the mean of the chunk's first tile. If that lies off the chunk's mean by
$\delta$, the variance is at least $\delta^2$ times the tile's share of the chunk, which bounds what the
subtraction of squares can lose by the number of tiles. Chunks are merged by Chan, Golub & LeVeque (1979), eq. 2.1, in
a fixed order and without atomic operations: the same bits on every run.
"""

import triton
import triton.language as tl

from normscope.kernels.gpu._tiles import (
    activate,
    channels_of,
    fma,
    linear,
    reciprocal_deviation,
    scale_and_shift,
    tile_at,
    total,
    two_sum,
)

SIZES = ["channels", "blocks", "rows", "lane_units", "stride_units", "across", "tiles", "per_program"]


@triton.jit
def _track(running_mean, running_var, high, low, var, unbias, share, channel, present):
    mean = tl.load(running_mean + channel, mask=present, other=0.0).to(tl.float32)
    moved = mean + share * ((high - mean) + low)
    tl.store(running_mean + channel, moved.to(running_mean.dtype.element_ty), mask=present)
    old = tl.load(running_var + channel, mask=present, other=0.0).to(tl.float32)
    moved = old + share * (var * unbias - old)
    tl.store(running_var + channel, moved.to(running_var.dtype.element_ty), mask=present)


@triton.jit
def _save(saved, high, low, rstd, channels, channel, present):
    tl.store(saved + channel, high, mask=present)
    tl.store(saved + channels + channel, low, mask=present)
    tl.store(saved + 2 * channels + channel, rstd, mask=present)


@triton.jit(do_not_specialize=SIZES)
def partial_moments(
    x,
    partial,  # (4, splits, channels): shift, mean beyond it, sum of squared deviations, count
    channels,
    blocks,
    rows,
    lane_units,
    stride_units,
    across,
    tiles,
    per_program,
    PLANES: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Moments of one chunk of a channel, or of a block of channels."""
    program = tl.program_id(0)
    block = program % blocks
    split = program // blocks
    channel, present = channels_of(block, channels, PLANES, LANES)
    first = split * per_program
    last = tl.minimum(first + per_program, tiles)

    corner, inner, mask, size = tile_at(
        first, block, rows, lane_units, stride_units, across, PLANES, ROWS, LANES, ALIGN, WIDE
    )
    start = x + corner
    if PLANES:
        one = tl.load(start + tl.arange(0, 1)[None, :]).to(tl.float32)
    else:
        one = tl.load(start + tl.arange(0, LANES)[None, :], mask=present, other=0.0).to(tl.float32)
    value = tl.load(start + inner, mask=mask, other=0.0).to(tl.float32)
    # From one of the values first: a constant channel then has its own value for its mean, and no variance.
    shift = one + tl.div_rn(total(tl.where(mask, value - one, 0.0), PLANES), size.to(tl.float32))

    sums = tl.zeros([ROWS, LANES], tl.float32)
    squares = tl.zeros([ROWS, LANES], tl.float32)
    count = size * 0
    for t in range(first, last):
        corner, inner, mask, size = tile_at(
            t, block, rows, lane_units, stride_units, across, PLANES, ROWS, LANES, ALIGN, WIDE
        )
        value = tl.load(x + corner + inner, mask=mask, other=0.0).to(tl.float32)
        d = tl.where(mask, value - shift, 0.0)
        sums += d
        squares = fma(d, d, squares)
        count += size
    n = count.to(tl.float32)
    s = total(sums, PLANES)
    low = tl.div_rn(s, n)
    m2 = tl.fma(-s, low, total(squares, PLANES))
    splits = tl.cdiv(tiles, per_program)
    place = split.to(tl.int64) * channels + channel
    plane = splits.to(tl.int64) * channels
    tl.store(partial + place, shift, mask=present)
    tl.store(partial + plane + place, low, mask=present)
    tl.store(partial + 2 * plane + place, m2, mask=present)
    tl.store(partial + 3 * plane + place, tl.zeros_like(shift) + n, mask=present)


@triton.jit(do_not_specialize=["channels", "splits", "inverse", "unbias", "eps", "share"])
def merge_moments(
    partial,
    saved,  # (3, channels)
    running_mean,
    running_var,
    channels,
    splits,
    inverse,  # 1 / n
    unbias,  # n / (n - 1)
    eps,
    share,
    TRACK: tl.constexpr,
    SPLITS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Merge the chunks of each channel; keep mean and reciprocal deviation; move running statistics."""
    channel, present = channels_of(tl.program_id(0), channels, False, LANES)
    plane = splits.to(tl.int64) * channels
    base = tl.load(partial + channel, mask=present, other=0.0)
    sums = tl.zeros([SPLITS, LANES], tl.float32)
    for at in range(0, splits, SPLITS):
        split = at + tl.arange(0, SPLITS)[:, None]
        mask = (split < splits) & present
        place = partial + split.to(tl.int64) * channels + channel
        shift = tl.load(place, mask=mask, other=0.0)
        low = tl.load(place + plane, mask=mask, other=0.0)
        n = tl.load(place + 3 * plane, mask=mask, other=0.0)
        sums += tl.where(mask, ((shift - base) + low) * n, 0.0)
    mean = tl.sum(sums, axis=0, keep_dims=True) * inverse  # beyond the first chunk's shift

    squares = tl.zeros([SPLITS, LANES], tl.float32)
    for at in range(0, splits, SPLITS):
        split = at + tl.arange(0, SPLITS)[:, None]
        mask = (split < splits) & present
        place = partial + split.to(tl.int64) * channels + channel
        shift = tl.load(place, mask=mask, other=0.0)
        low = tl.load(place + plane, mask=mask, other=0.0)
        m2 = tl.load(place + 2 * plane, mask=mask, other=0.0)
        n = tl.load(place + 3 * plane, mask=mask, other=0.0)
        delta = (shift - base) + (low - mean)
        squares += tl.where(mask, m2 + n * (delta * delta), 0.0)
    var = tl.sum(squares, axis=0, keep_dims=True) * inverse
    var = tl.where(var < 0.0, 0.0, var)  # by rounding; and NaN stays NaN
    high, rest = two_sum(base, mean)
    _save(saved, high, rest, reciprocal_deviation(var, eps), channels, channel, present)
    if TRACK:
        _track(running_mean, running_var, high, rest, var, unbias, share, channel, present)


@triton.jit(do_not_specialize=[*SIZES, "slope"])
def apply(
    x,
    weight,
    bias,
    residual,
    saved,
    y,
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
    """``y = act((x - mean) * rstd * weight + bias + residual)``."""
    # From the end: what the reduction has read last is in the cache still.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    block = program % blocks
    first = (program // blocks) * per_program
    last = tl.minimum(first + per_program, tiles)
    channel, present = channels_of(block, channels, PLANES, LANES)
    high = tl.load(saved + channel, mask=present, other=0.0)
    low = tl.load(saved + channels + channel, mask=present, other=0.0)
    rstd = tl.load(saved + 2 * channels + channel, mask=present, other=0.0)
    a, b = scale_and_shift(low, rstd, weight, bias, channel, present, HAS_WEIGHT, HAS_BIAS)
    for t in range(first, last):
        corner, inner, mask, _ = tile_at(
            t, block, rows, lane_units, stride_units, across, PLANES, ROWS, LANES, ALIGN, WIDE
        )
        z = linear(tl.load(x + corner + inner, mask=mask, other=0.0).to(tl.float32), high, a, b)
        if HAS_RESIDUAL:
            z += tl.load(residual + corner + inner, mask=mask, other=0.0).to(tl.float32)
        tl.store(y + corner + inner, activate(z, slope, ACTIVATION).to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[*SIZES, "slope", "inverse", "unbias", "eps", "share"])
def fused_forward(
    x,
    weight,
    bias,
    residual,
    saved,
    y,
    running_mean,
    running_var,
    slope,
    inverse,
    unbias,
    eps,
    share,
    channels,
    rows,
    lane_units,
    stride_units,
    TRACK: tl.constexpr,
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
    """All of it for channels of one tile, which is read once: mean, then deviations from it, then ``y``."""
    block = tl.program_id(0)
    channel, present = channels_of(block, channels, PLANES, LANES)
    corner, inner, mask, _ = tile_at(
        block * 0, block, rows, lane_units, stride_units, 1, PLANES, ROWS, LANES, ALIGN, WIDE
    )
    start = x + corner
    if PLANES:
        one = tl.load(start + tl.arange(0, 1)[None, :]).to(tl.float32)
    else:
        one = tl.load(start + tl.arange(0, LANES)[None, :], mask=present, other=0.0).to(tl.float32)
    value = tl.load(start + inner, mask=mask, other=0.0).to(tl.float32)
    near = one + total(tl.where(mask, value - one, 0.0), PLANES) * inverse
    # If the one value lies far from all others, rounding by that distance is left in there: take the mean from here.
    high, low = two_sum(near, total(tl.where(mask, value - near, 0.0), PLANES) * inverse)
    d = tl.where(mask, (value - high) - low, 0.0)
    var = total(d * d, PLANES) * inverse
    rstd = reciprocal_deviation(var, eps)
    _save(saved, high, low, rstd, channels, channel, present)
    if TRACK:
        _track(running_mean, running_var, high, low, var, unbias, share, channel, present)
    a, b = scale_and_shift(low, rstd, weight, bias, channel, present, HAS_WEIGHT, HAS_BIAS)
    z = linear(value, high, a, b)
    if HAS_RESIDUAL:
        z += tl.load(residual + corner + inner, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + corner + inner, activate(z, slope, ACTIVATION).to(y.dtype.element_ty), mask=mask)
