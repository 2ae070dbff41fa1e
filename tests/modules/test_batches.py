"""Walks over batches: what is a tensor in them, how long they are, and parts and copies of the same structure."""

from collections import UserDict, namedtuple
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from normscope._errors import UsageError
from normscope.modules.batches import Piece, batch_size, finite, is_pieces, kept, leading_tensor, mapped, part, tensors
from normscope.modules.rng import RngState

Pair = namedtuple("Pair", "images labels")
WRAPS = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "dict": lambda x, y: {"x": x, "y": y},
    "named tuple": Pair,
    "nested": lambda x, y: {"inputs": [x, {"mask": None, "name": "a"}], "labels": (y,)},
    "mapping of another class": lambda x, y: UserDict(x=x, y=y),
    "mapping that cannot be written to": lambda x, y: MappingProxyType({"x": x, "y": y}),
    "object": lambda x, y: SimpleNamespace(x=x, y=y, size=4),
}


def leaves(value):
    """Return the tensors of a batch in order, by another walk than the room's."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in leaves(item)]
    inside = vars(value) if isinstance(value, SimpleNamespace) else value
    return [leaf for item in inside.values() for leaf in leaves(item)] if hasattr(inside, "values") else []


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_copy_has_the_structure_and_no_memory_of_the_batch(wrap):
    x, y = torch.randn(6, 2, requires_grad=True), torch.arange(6)
    batch = WRAPS[wrap](x, y)
    copied = kept(batch)
    assert type(copied) is type(batch)
    with torch.no_grad():
        x.zero_()
    y.zero_()
    values = leaves(copied)
    assert len(values) == 2
    assert values[0].abs().min() > 0
    assert not values[0].requires_grad
    assert values[1].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("wrap", WRAPS)
@settings(deadline=None)
@given(st.integers(2, 9), st.integers(2, 4))
def test_parts_are_disjoint_equal_and_in_order(wrap, size, parts):
    batch = WRAPS[wrap](torch.arange(size * 3.0).view(size, 3), torch.arange(size))
    assert batch_size(batch) == size
    if size < parts:
        with pytest.raises(UsageError, match=f"a batch of {size} cannot be cut into {parts} parts"):
            part(batch, 0, parts)
        return
    cut = [leaves(part(batch, index, parts)) for index in range(parts)]
    width = size // parts
    for column, whole in enumerate(leaves(batch)):
        assert torch.equal(torch.cat([piece[column] for piece in cut]), whole[: width * parts])


def test_samples_may_lie_along_another_axis_and_other_tensors_stay_whole():
    batch = {"x": torch.randn(3, 8), "weights": torch.ones(5), "rate": 0.1}
    second = part(batch, 1, 2, axis=1)
    assert torch.equal(second["x"], batch["x"][:, 4:])
    assert second["weights"] is batch["weights"]


def test_a_batch_without_samples_is_refused():
    with pytest.raises(UsageError, match="no tensor with an axis of samples"):
        batch_size({"rate": torch.tensor(1.0), "name": "x"})


def test_an_object_that_holds_itself_is_copied_once():
    batch = SimpleNamespace(x=torch.ones(2))
    batch.itself = batch
    copied = kept(batch)
    assert copied.itself is copied
    assert copied.x is not batch.x


def test_the_pieces_of_a_step_that_accumulates():
    pieces = [Piece(torch.full((4,), float(index)), 0.5, RngState()) for index in range(2)]
    assert is_pieces(pieces)
    assert not any(map(is_pieces, ([], tuple(pieces), [*pieces, 1], pieces[0])))
    half = part(pieces, 0, 2)
    assert [piece.batch.tolist() for piece in half] == [[0.0, 0.0], [1.0, 1.0]]
    assert half[0].rng is pieces[0].rng


def test_tensors_and_the_leading_one():
    index, x, y = torch.arange(2), torch.randn(2), torch.randn(3)
    assert [id(t) for t in tensors(((index, [x]), {"y": y, "z": None}))] == [id(index), id(x), id(y)]
    assert tensors(None) == tensors({}) == tensors("x") == []
    assert leading_tensor((index, {"a": [None, x]}, y)) is x
    assert leading_tensor([index]) is None
    assert mapped([x, 1], lambda t: t * 0)[1] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_seen(bad):
    x = torch.ones(100)
    assert finite([x, torch.arange(3), torch.full((4,), 3e38)])  # the sum overflows, and no value is at fault
    x[17] = bad
    assert not finite([torch.ones(2), x])
