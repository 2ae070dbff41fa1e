"""Starts the kernels: allocates, picks the fused one or the three, hands over sizes."""

from typing import Any

import torch
from torch import Tensor

from normscope.kernels.gpu import _backward, _forward
from normscope.kernels.gpu._plan import Plan, dense, laid_out_as, plan

Running = tuple[Tensor, Tensor, float]

# The compiler fuses nothing by itself: see _tiles.
_OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}
_MERGE: dict[str, Any] = {"SPLITS": 32, "LANES": 32, "num_warps": 4, **_OPTIONS}


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int,
    slope: float,
    residual: Tensor | None,
    running: Running | None,
) -> tuple[Tensor, Tensor]:
    """See `normscope.kernels.gpu.forward`."""
    x = dense(x)
    p = plan(x)
    y = torch.empty_like(x)
    saved = x.new_empty((3, p.channels), dtype=torch.float32)
    if residual is not None:
        residual = laid_out_as(residual, x)
    mean, var, share = running or (saved, saved, 0.0)
    inverse, unbias = 1 / p.count, p.count / (p.count - 1)
    # A pointer that no branch reads is any tensor of a type that is there anyway: no variant of its own for None.
    given = x, *_parameters(weight, bias, saved), x if residual is None else residual, saved, y
    chosen = _chosen(activation, weight, bias, residual)
    with torch.cuda.device_of(x):
        if p.fused:
            sizes = p.channels, p.rows, p.lanes // p.align, p.stride // p.align
            numbers = slope, inverse, unbias, eps, share
            _forward.fused_forward[(p.blocks,)](
                *given, mean, var, *numbers, *sizes, TRACK=running is not None, **chosen, **_blocks(p)
            )
            return y, saved
        partial = x.new_empty((4, p.splits, p.channels), dtype=torch.float32)
        _forward.partial_moments[(p.blocks * p.splits,)](x, partial, *_sizes(p, p.reduce_tiles), **_blocks(p))
        _forward.merge_moments[(-(-p.channels // _MERGE["LANES"]),)](
            *(partial, saved, mean, var, p.channels, p.splits, inverse, unbias, eps, share),
            TRACK=running is not None,
            **_MERGE,
        )
        _forward.apply[(p.blocks * p.chunks,)](*given, slope, *_sizes(p, p.apply_tiles), **chosen, **_blocks(p))
    return y, saved


def backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    activation: int,
    slope: float,
    residual: Tensor | None,
    wanted: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """See `normscope.kernels.gpu.backward`."""
    want_x, want_weight, want_bias, want_residual = wanted
    want_weight, want_bias = want_weight and weight is not None, want_bias and bias is not None
    dx = dresidual = sums = None
    want_residual = want_residual and residual is not None
    if want_residual and not activation:
        dresidual, want_residual = g, False  # the residual is added last: its gradient is the output's
    want_sums = want_x or want_weight or want_bias
    if want_sums or want_residual:
        x = dense(x)
        p = plan(x)
        g = laid_out_as(g, x)
        dx = torch.empty_like(x) if want_x else None
        if residual is not None and activation:
            residual = laid_out_as(residual, x)
            dresidual = torch.empty_like(residual) if want_residual else None
        else:
            residual = None
        sums = x.new_empty((2, p.channels), dtype=torch.float32)
        with torch.cuda.device_of(x):
            given = g, x, weight, bias, saved, sums, activation, slope, residual
            _run(p, *given, dx, dresidual if want_residual else None, want_sums)
    dweight = sums[1] if want_weight and sums is not None else None
    dbias = sums[0] if want_bias and sums is not None else None
    return dx, dweight, dbias, dresidual


def _run(
    p: Plan,
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    sums: Tensor,
    activation: int,
    slope: float,
    residual: Tensor | None,
    dx: Tensor | None,
    dresidual: Tensor | None,
    want_sums: bool,
) -> None:
    given = g, x, *_parameters(weight, bias, saved), x if residual is None else residual, saved
    out = x if dx is None else dx, x if dresidual is None else dresidual
    chosen = _chosen(activation, weight, bias, residual)
    write: dict[str, Any] = {"WRITE_X": dx is not None, "WRITE_RESIDUAL": dresidual is not None}
    inverse = 1 / p.count
    if p.fused:
        sizes = p.channels, p.rows, p.lanes // p.align, p.stride // p.align
        _backward.fused_backward[(p.blocks,)](
            *given, sums, *out, slope, inverse, *sizes, **write, **chosen, **_blocks(p)
        )
        return
    if want_sums:
        partial = x.new_empty((2, p.splits, p.channels), dtype=torch.float32)
        _backward.partial_gradients[(p.blocks * p.splits,)](
            *given, partial, slope, *_sizes(p, p.reduce_tiles), **chosen, **_blocks(p)
        )
        _backward.merge_gradients[(-(-p.channels // _MERGE["LANES"]),)](partial, sums, p.channels, p.splits, **_MERGE)
    if dx is not None or dresidual is not None:
        _backward.apply_backward[(p.blocks * p.chunks,)](
            *given, sums, *out, slope, inverse, *_sizes(p, p.apply_tiles), **write, **chosen, **_blocks(p)
        )


def _parameters(weight: Tensor | None, bias: Tensor | None, saved: Tensor) -> tuple[Tensor, Tensor]:
    return saved if weight is None else weight, saved if bias is None else bias


def _chosen(
    activation: int, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> dict[str, int | bool]:
    return {
        "ACTIVATION": activation,
        "HAS_WEIGHT": weight is not None,
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
    }


def _sizes(p: Plan, per_program: int) -> tuple[int, ...]:
    lanes, stride = p.lanes // p.align, p.stride // p.align
    return p.channels, p.blocks, p.rows, lanes, stride, p.across, p.tiles, per_program


def _blocks(p: Plan) -> dict[str, Any]:
    return {
        "PLANES": p.planes,
        "ROWS": p.block_rows,
        "LANES": p.block_lanes,
        "ALIGN": p.align,
        "WIDE": p.wide,
        "num_warps": p.warps,
        **_OPTIONS,
    }
