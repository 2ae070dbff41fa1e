"""Values are compared and put back bit for bit, whatever their dtype, layout and place in memory."""

import struct

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from normscope.modules.values import Values, same_bits

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool,
          torch.complex64, torch.complex128]  # fmt: skip


def of(dtype, *shape, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 50
    return x > 0 if dtype == torch.bool else x.to(dtype)


def flipped(x, index=0, bit=0):
    """Return a copy of a dense tensor in which one bit of one element is another."""
    raw = bytearray(x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    raw[index * x.element_size()] ^= 1 << bit
    return torch.frombuffer(raw, dtype=torch.uint8).clone().view(x.dtype).reshape(x.shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_flipped_bit_is_another_value(dtype):
    x = of(dtype, 3, 5)
    assert same_bits(x, x.clone())
    assert same_bits(x.t(), x.t().contiguous())
    assert not same_bits(x, flipped(x, index=7))


def test_nan_is_itself_and_a_negative_zero_is_not_zero():
    nan = struct.unpack("<d", struct.pack("<q", 0x7FF8000000000001))[0]
    assert same_bits(torch.tensor([nan, 1.0]), torch.tensor([nan, 1.0]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([0]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([[0.0]]))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc"])
def test_sparse_tensors_compare_by_places_and_values(layout):
    def sparse(dense):
        return dense.to_sparse(layout=getattr(torch, layout), blocksize=(2, 2) if "bs" in layout else None)

    dense = torch.eye(4) * 3
    moved = dense.roll(2, 1)
    assert same_bits(sparse(dense), sparse(dense))
    assert not same_bits(sparse(dense), sparse(dense * 2))
    assert not same_bits(sparse(dense), sparse(moved))
    assert not same_bits(sparse(dense), dense)


KINDS = st.sampled_from(["row by row", "transposed", "strided", "empty", "scalar", "large", "parameter", "sparse"])


def tensor_of(kind, dtype, seed):
    if kind == "transposed":
        return of(dtype, 3, 4, seed=seed).t()
    if kind == "strided":
        return of(dtype, 6, 4, seed=seed)[::2, 1:]
    if kind == "sparse":
        return of(torch.float32, 3, 4, seed=seed).relu().to_sparse()
    if kind == "parameter":
        return nn.Parameter(of(torch.float32, 4, seed=seed))
    return of(dtype, *{"row by row": (2, 3), "empty": (0, 3), "scalar": (), "large": (200, 100)}[kind], seed=seed)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(KINDS, st.sampled_from(DTYPES), st.booleans()), min_size=1, max_size=8))
def test_those_that_changed_are_named_and_put_back(plan):
    named = [(str(index), tensor_of(kind, dtype, index)) for index, (kind, dtype, _) in enumerate(plan)]
    before = [(tensor.detach().clone(), tensor._version) for _, tensor in named]
    values = Values(named)
    for (_, tensor), (_, _, change) in zip(named, plan, strict=True):
        if change and tensor.numel():
            if tensor.layout != torch.strided:
                tensor.mul_(2)
            else:
                tensor.data.copy_(~tensor if tensor.dtype == torch.bool else tensor + 1)
    changed = {index for index, (_, tensor) in enumerate(named) if not same_bits(tensor, before[index][0])}
    assert {int(name) for name, *_ in values.changed()} == changed
    values.restore()
    assert list(values.changed()) == []
    for (_, tensor), (value, version) in zip(named, before, strict=True):
        assert same_bits(tensor, value)
        assert tensor.layout != torch.strided or tensor._version == version


def test_a_tensor_of_other_memory_is_named_though_its_value_is_the_same():
    x = torch.randn(3)
    values = Values([("x", x)])
    x.data = x.data.clone()
    assert [(name, value) for name, _, _, value in values.changed()] == [("x", None)]
