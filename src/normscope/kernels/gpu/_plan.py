"""How the work on a tensor is cut into programs: which tiles, how many side by side, in how many chunks a channel.

A tile is ``block_rows`` x ``block_lanes`` elements, lanes next to each other in memory. There are two layouts.

- *planes*: ``(N, C, *)`` contiguous. A program owns one channel; rows are samples, lanes are places of the map.
- *rows*: channels_last, and ``(N, C)``. A program owns a block of channels; rows are samples and places, lanes are
  channels, so that loads are coalesced along them.

Nothing is tuned by trial at the first call: what is chosen follows from sizes, and few variants are compiled.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that the plans are made by.

    Attributes:
        tile_bytes: Of a tile in a kernel that walks over many: four 16-byte loads a thread at four warps.
        widest: Lanes of a tile at most.
        fused: Elements of the one tile that a channel (or block of channels) may have to be kept in registers.
        resident: Programs wanted for each multiprocessor in a reduction, enough to hide the latency of memory.
        most_tiles: Of one program in a reduction: this many values are added up by a thread's one float32 sum.
        processors: Multiprocessors to plan for; those of the device if None.
    """

    tile_bytes: int = 8192
    widest: int = 1024
    fused: int = 16384
    resident: int = 8
    most_tiles: int = 256
    processors: int | None = None


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of the tensor and of its pieces.

    Attributes:
        planes: Whether the layout is *planes*; else it is *rows*.
        channels: How many channels.
        rows: Rows of the layout.
        lanes: Lanes of the layout: places in a map, or channels.
        stride: Elements from one row to the next.
        align: Power of two that divides both ``lanes`` and ``stride``, at most 16: what loads may be as wide as.
        block_rows: Rows of a tile, a power of two.
        block_lanes: Lanes of a tile, a power of two.
        blocks: Programs side by side over the channels.
        across: Tiles side by side over the lanes of one channel.
        tiles: Tiles of one channel (or block of channels).
        fused: Whether there is one tile, to be done by one kernel.
        reduce_tiles: Tiles of one program in a reduction.
        splits: Programs that share a channel in a reduction.
        apply_tiles: Tiles of one program in an elementwise kernel.
        chunks: Programs that share a channel in an elementwise kernel.
        warps: Warps of a program.
        wide: Whether offsets within a tile need 64 bits.
    """

    planes: bool
    channels: int
    rows: int
    lanes: int
    stride: int
    align: int
    block_rows: int
    block_lanes: int
    blocks: int
    across: int
    tiles: int
    fused: bool
    reduce_tiles: int
    splits: int
    apply_tiles: int
    chunks: int
    warps: int
    wide: bool

    @property
    def count(self) -> int:
        """Values of a channel."""
        return self.rows * (self.lanes if self.planes else 1)


def dense(x: Tensor) -> Tensor:
    """Return ``x`` as it is if it is contiguous or channels_last, else contiguous."""
    return x if _planes(x) is not None else x.contiguous()


def laid_out_as(t: Tensor, x: Tensor) -> Tensor:
    """Return ``t`` with the strides of ``x``, copied only where it has others (a gradient that was expanded, say)."""
    if t.stride() == x.stride():
        return t
    return torch.empty_like(x, dtype=t.dtype).copy_(t)


def plan(x: Tensor, limits: Limits | None = None) -> Plan:
    """Cut up the work on ``x``.

    Args:
        x: Values ``(N, C, *)``, contiguous or channels_last.
        limits: Sizes to go by; those of this module if None.

    Returns:
        The plan, made once for each shape, layout and element size.

    Raises:
        ValueError: ``x`` has another layout.
    """
    planes = _planes(x)
    if planes is None:
        raise ValueError(f"neither contiguous nor channels_last: shape {tuple(x.shape)}, strides {x.stride()}")
    limits = limits or LIMITS
    processors = limits.processors or _processors(x.device.index if x.is_cuda else None)
    return _plan(tuple(x.shape), planes, x.element_size(), processors, limits)


def _planes(x: Tensor) -> bool | None:
    """Say whether the layout is *planes* (True), *rows* (False) or neither (None)."""
    places = prod(x.shape[2:])
    if x.is_contiguous():
        # Maps of one place lie as (N, C) does. One channel is one plane: lanes then run along the map.
        return places > 1
    return False if x.movedim(1, -1).is_contiguous() else None


@lru_cache
def _processors(index: int | None) -> int:
    if index is None:
        return 108
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


@lru_cache(maxsize=4096)
def _plan(shape: tuple[int, ...], planes: bool, itemsize: int, processors: int, limits: Limits) -> Plan:
    channels, places = shape[1], prod(shape[2:])
    tile = max(1, limits.tile_bytes // itemsize)
    if planes:
        rows, lanes, stride = shape[0], places, channels * places
        fused = _power(rows) * _power(lanes) <= limits.fused
        block_lanes = _power(lanes) if fused else _width(lanes, min(limits.widest, tile))
    else:
        rows, lanes, stride = shape[0] * places, channels, channels
        narrow = min(_power(channels), 16)
        fused = _power(rows) * narrow <= limits.fused
        # Half a cache line of channels at the least, and a whole one where programs are many all the same.
        while fused and narrow < 64 and _power(rows) * narrow <= 2048 and channels >= 2 * narrow * processors:
            narrow *= 2
        block_lanes = narrow if fused else min(_power(channels), 64, tile)
    block_rows = _power(rows) if fused else min(_power(rows), max(1, tile // block_lanes))
    across = -(-lanes // block_lanes) if planes else 1
    tiles = -(-rows // block_rows) * across
    blocks = channels if planes else -(-channels // block_lanes)

    splits = max(1, min(tiles, -(-limits.resident * processors // blocks)))
    reduce_tiles = min(-(-tiles // splits), limits.most_tiles)
    apply_tiles = max(1, min(8, tiles * blocks // (16 * processors)))
    elements = block_rows * block_lanes
    warps = elements // 512 if fused else elements * itemsize // 2048
    return Plan(
        planes=planes,
        channels=channels,
        rows=rows,
        lanes=lanes,
        stride=stride,
        align=gcd(lanes, stride, 16),
        block_rows=block_rows,
        block_lanes=block_lanes,
        blocks=blocks,
        across=across,
        tiles=tiles,
        fused=fused,
        reduce_tiles=reduce_tiles,
        splits=-(-tiles // reduce_tiles),
        apply_tiles=apply_tiles,
        chunks=-(-tiles // apply_tiles),
        warps=min(16, max(1, warps)),
        wide=block_rows * stride >= 2**31,
    )


def _width(lanes: int, widest: int) -> int:
    """Return how many lanes a tile has: the most of which few stick out beyond the map."""
    widths = [w for w in (1024, 512, 256, 128) if w <= widest] or [widest]
    widths = [w for w in widths if w <= _power(lanes)] or [min(_power(lanes), widest)]
    least = min(-(-lanes // w) * w for w in widths)
    return max(w for w in widths if -(-lanes // w) * w <= 1.1 * least)


def _power(n: int) -> int:
    """Return the next power of two."""
    return 1 << (n - 1).bit_length()
