"""Random streams are set back, and what was drawn meanwhile is seen."""

import random

import numpy as np
import pytest
import torch

from normscope.modules.rng import RngState, torch_streams_kept


class Drawing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stream = torch.Generator().manual_seed(5)
        self.inner = torch.nn.Module()
        self.inner.stream = torch.Generator().manual_seed(6)


MODEL, LOOSE = Drawing(), torch.Generator().manual_seed(7)
DRAWS = {
    "torch's CPU stream": lambda: torch.rand(1).item(),
    "NumPy's stream": lambda: np.random.rand(),  # noqa: NPY002
    "Python's stream": random.random,
    "a generator": lambda: torch.rand(1, generator=MODEL.inner.stream).item(),
}
ALL = [*DRAWS.values(), lambda: torch.rand(1, generator=MODEL.stream), lambda: torch.rand(1, generator=LOOSE)]


@pytest.mark.parametrize("stream", DRAWS)
def test_each_stream_is_set_back_and_named(stream):
    before = RngState(MODEL, generators=[LOOSE])
    assert before.differences(RngState(MODEL, generators=[LOOSE])) == []
    drawn = [draw() for draw in ALL]
    before.restore()
    assert before.differences(RngState(MODEL, generators=[LOOSE])) == []
    assert [draw() for draw in ALL] == drawn
    before.restore()
    DRAWS[stream]()
    assert before.differences(RngState(MODEL, generators=[LOOSE])) == [stream]
    assert before.drawn_beside_torch() == (stream in ("NumPy's stream", "Python's stream"))


def test_streams_beside_torch_are_left_where_they_are_on_request():
    before = RngState(MODEL)
    for draw in ALL[:4]:
        draw()
    before.restore(beside_torch=False)
    assert before.differences(RngState(MODEL)) == ["NumPy's stream", "Python's stream"]


def test_torchs_streams_are_kept_also_where_the_block_raises():
    before = torch.get_rng_state()
    with torch_streams_kept():
        torch.manual_seed(0)
        first = torch.rand(1)
    assert torch.equal(torch.get_rng_state(), before)

    @torch_streams_kept()
    def fail():
        torch.manual_seed(0)
        assert torch.equal(torch.rand(1), first)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
