"""How work is cut into programs: every element is done once, and sizes stay within what a GPU has. Needs no Triton."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings, strategies as st

from normscope.kernels.gpu import _plan, why_not  # white box: the plan is not part of any result

SMALL = _plan.Limits(tile_bytes=128, fused=64, processors=2, resident=3, most_tiles=4)


def tensor(shape, last=False, dtype=torch.float32):
    if not last:
        return torch.empty(shape, dtype=dtype, device="meta")
    return torch.empty((shape[0], *shape[2:], shape[1]), dtype=dtype, device="meta").movedim(-1, 1)


def seen(p, per_program, programs):
    """How often each element is in a tile of some program: the arithmetic of the kernels, in Python."""
    counts = torch.zeros(p.rows * p.stride, dtype=torch.int64)
    for program in range(p.blocks * programs):
        block, chunk = program % p.blocks, program // p.blocks
        for t in range(chunk * per_program, min((chunk + 1) * per_program, p.tiles)):
            if p.planes:
                row, lane, base = t // p.across * p.block_rows, t % p.across * p.block_lanes, block * p.lanes
            else:
                row, lane, base = t * p.block_rows, block * p.block_lanes, 0
            rows = torch.arange(row, min(row + p.block_rows, p.rows))[:, None]
            lanes = torch.arange(lane, min(lane + p.block_lanes, p.lanes))
            counts[(rows * p.stride + base + lanes).flatten()] += 1
    return counts


@given(
    shape=st.one_of(
        st.tuples(st.integers(2, 70), st.integers(1, 70)),
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    ),
    last=st.booleans(),
    limits=st.sampled_from([SMALL, _plan.Limits(processors=4)]),
)
@settings(max_examples=60, deadline=None)
def test_every_element_is_done_once(shape, last, limits):
    p = _plan.plan(tensor(shape, last), limits)
    assert p.count * p.channels == tensor(shape).numel()
    for per_program, programs in ((p.reduce_tiles, p.splits), (p.apply_tiles, p.chunks)):
        assert (seen(p, per_program, programs) == 1).all()
        assert (programs - 1) * per_program < p.tiles  # no program without a tile: it would divide by its count
    assert p.lanes % p.align == p.stride % p.align == 0
    assert p.fused <= (p.tiles == p.splits == p.chunks == 1)
    if limits is SMALL:
        assert p.reduce_tiles <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "shape", [(256, 64, 112, 112), (64, 256, 56, 56), (128, 1024, 14, 14), (64, 2048, 7, 7), (1024, 100), (8, 100_000)]
)
def test_sizes_of_real_layers(shape, last, dtype):
    p = _plan.plan(tensor(shape, last, dtype), _plan.Limits(processors=132))
    for power in (p.block_rows, p.block_lanes, p.warps):
        assert power & (power - 1) == 0
    elements = p.block_rows * p.block_lanes
    assert elements <= (16384 if p.fused else 8192 // dtype.itemsize)
    assert elements // (32 * p.warps) <= 32  # values of a tensor that a thread holds
    assert p.tiles * elements * p.blocks <= 2.7 * p.count * p.channels  # lanes that do nothing cost time, if no memory
    assert p.splits == 1 or p.blocks * p.splits >= 4 * 132
    assert not p.wide


def test_layouts():
    assert _plan.plan(tensor((4, 3, 5, 5))).planes
    assert not _plan.plan(tensor((4, 3, 5, 5), last=True)).planes
    assert not _plan.plan(tensor((4, 3, 5), last=True)).planes
    assert not _plan.plan(tensor((4, 3, 1, 1))).planes
    assert not _plan.plan(tensor((4, 3))).planes
    assert _plan.plan(tensor((4, 1, 5, 5), last=True)).planes
    across = torch.empty(4, 3, 5, 6).transpose(2, 3)
    with pytest.raises(ValueError, match="neither contiguous nor channels_last"):
        _plan.plan(across)
    assert _plan.dense(across).is_contiguous()


def test_offsets_in_a_tile_take_64_bits_where_they_must():
    p = _plan.plan(tensor((4096, 8192, 64, 64)))
    assert p.wide == (p.block_rows * 8192 * 64 * 64 >= 2**31)
    assert _plan.plan(tensor((64, 2**20, 64, 32))).wide
    assert not _plan.plan(tensor((2**17, 64, 32, 32), last=True)).wide  # 2**33 elements, but rows are short


def test_importing_the_package_imports_no_triton():
    code = (
        "import sys; from normscope.kernels import gpu; assert 'triton' not in sys.modules;"
        "import torch; print(gpu.why_not(torch.device('cpu')))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_plain()).stdout
    assert said.startswith(("Triton is not installed", "the tensors are on cpu"))
    assert said.count("\n") == 1


def test_without_triton_it_says_so(monkeypatch):
    from normscope.kernels import gpu

    monkeypatch.setitem(sys.modules, "triton", None)
    gpu._why_not.cache_clear()  # white box: the answer is kept for the life of the process
    try:
        assert "Triton is not installed" in why_not(torch.device("cpu"))
    finally:
        gpu._why_not.cache_clear()


@pytest.mark.extras
def test_where_triton_has_no_driver_it_says_so(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    from normscope.kernels import gpu

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    if torch.version.cuda is None:
        said = gpu._why_not.__wrapped__("cuda", 0)
        assert said.startswith("Triton does not run here (")
        assert "\n" not in said
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert "older than compute capability 8.0" in gpu._why_not.__wrapped__("cuda", 0)


def _plain():
    return {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
