"""What the kernels share: where a tile lies, how a channel is scaled and shifted, activations.

Values of a channel have shape ``[1, 1]`` in the layout *planes* and ``[1, channels of the block]`` in *rows*, so that
they broadcast over a tile in both. All arithmetic is float32.

Where a product is added, it is said to be one ``fma``, and the compiler is told to fuse nothing by itself: forward and
backward must agree to the last bit on the activation's input, and so must different compilers.
"""

import triton
import triton.language as tl


@triton.jit
def channels_of(block, channels, PLANES: tl.constexpr, LANES: tl.constexpr):
    """Channels of a block and which of them exist, ``[1, 1]`` or ``[1, LANES]``."""
    if PLANES:
        channel = block + tl.arange(0, 1)[None, :]
    else:
        channel = block * LANES + tl.arange(0, LANES)[None, :]
    return channel, channel < channels


@triton.jit
def tile_at(
    t,
    block,
    rows,
    lane_units,
    stride_units,
    across,
    PLANES: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Tile ``t`` of a block: offset of its corner in 64 bits, offsets in it, which elements exist, rows x lanes.

    Sizes come in units of ``ALIGN``, so that the compiler knows what divides them and how wide loads may be.
    """
    lanes = lane_units * ALIGN
    stride = stride_units.to(tl.int64) * ALIGN
    if PLANES:
        row = (t // across) * ROWS
        lane = (t % across) * LANES
        corner = row * stride + block.to(tl.int64) * lanes + lane
        size = tl.minimum(rows - row, ROWS) * tl.minimum(lanes - lane, LANES)
    else:
        row = t * ROWS
        lane = block * LANES
        corner = row * stride + lane
        size = tl.minimum(rows - row, ROWS)
    in_row = tl.arange(0, ROWS)[:, None]
    in_lane = tl.arange(0, LANES)[None, :]
    mask = (row + in_row < rows) & (lane + in_lane < lanes)
    if WIDE:
        inner = in_row.to(tl.int64) * stride + in_lane
    else:
        inner = in_row * (stride_units * ALIGN) + in_lane
    return corner, inner, mask, size


@triton.jit
def total(tile, PLANES: tl.constexpr):
    """Sum of a tile for each channel, in a fixed order."""
    if PLANES:
        return tl.sum(tl.sum(tile, axis=1, keep_dims=True), axis=0, keep_dims=True)
    else:
        return tl.sum(tile, axis=0, keep_dims=True)


@triton.jit
def two_sum(a, b):
    """Rounded sum, and exactly what rounding took from it (Knuth, 1969, 4.2.2 theorem B)."""
    high = a + b
    from_b = high - a
    return high, (a - (high - from_b)) + (b - from_b)


@triton.jit
def reciprocal_deviation(var, eps):
    """``(var + eps) ** -0.5``, each step rounded to nearest: the fast instruction is off by two units."""
    return tl.div_rn(1.0, tl.sqrt_rn(var + eps))


@triton.jit
def scale_and_shift(low, rstd, weight, bias, channel, present, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """``a`` and ``b`` of ``z = (x - mean_high) * a + b``: the same bits wherever it is called."""
    if HAS_WEIGHT:
        a = rstd * tl.load(weight + channel, mask=present, other=0.0).to(tl.float32)
    else:
        a = rstd
    if HAS_BIAS:
        b = tl.fma(-low, a, tl.load(bias + channel, mask=present, other=0.0).to(tl.float32))
    else:
        b = -low * a
    return a, b


@triton.jit
def fma(x, y, z):
    """``x * y + z`` with one rounding, over a tile that is ``x``."""
    return tl.fma(x, tl.broadcast_to(y, x.shape), tl.broadcast_to(z, x.shape))


@triton.jit
def linear(x, high, a, b):
    """``(x - high) * a + b`` over a tile: the difference of nearby floats is exact, and the rest rounds once."""
    return fma(x - high, a, b)


@triton.jit
def activate(z, slope, ACTIVATION: tl.constexpr):
    """None (0), ReLU (1), leaky ReLU (2); NaN stays NaN, as in torch."""
    if ACTIVATION == 1:
        return tl.where(z <= 0.0, 0.0, z)
    elif ACTIVATION == 2:
        return tl.where(z > 0.0, z, z * slope)
    else:
        return z


@triton.jit
def activate_backward(g, z, slope, ACTIVATION: tl.constexpr):
    """Gradient before the activation; where the output is NaN it passes as torch lets it."""
    if ACTIVATION == 1:
        return tl.where(z <= 0.0, 0.0, g)
    elif ACTIVATION == 2:
        return tl.where(z > 0.0, g, g * slope)
    else:
        return g
