"""A model is called as its loop calls it, and modes come back."""

from contextlib import suppress

import pytest
import torch
from torch import nn

from normscope.modules.autocast import autocast_now, autocasting, beside, without_autocast
from normscope.modules.call import arguments, call_batch, modes_kept, run, set_mode, to_device
from normscope.modules.rng import RngState


class Sum(nn.Module):
    def forward(self, x, y=0.0):
        return x + y


def test_an_example_is_one_input_several_or_keywords():
    x = torch.ones(2)
    assert [run(Sum(), example)[0].item() for example in (x, (x, x), [x, 3 * x], {"x": x, "y": x})] == [1, 2, 4, 2]
    assert arguments(Sum(), {"x": 1}) == ((), {"x": 1})


def test_of_a_batch_the_first_is_the_input():
    x = torch.ones(2)
    assert [call_batch(Sum(), batch)[0].item() for batch in (x, (x, x), [x], {"x": x, "y": x})] == [1, 1, 1, 2]


def test_tensors_go_where_the_model_is():
    model = nn.Linear(1, 1, device="meta")
    moved = to_device(model, {"x": [torch.ones(1)], "n": 3})
    assert moved["x"][0].device.type == "meta"
    assert moved["n"] == 3


def test_modes_come_back_each_its_own():
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    model[1][1].eval()
    before = [module.training for module in model.modules()]
    with suppress(ArithmeticError), modes_kept(model.modules()):
        set_mode(model, True)
        assert all(module.training for module in model.modules())
        raise ArithmeticError
    assert [module.training for module in model.modules()] == before


def test_autocast_is_taken_and_given_again():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        kinds = autocast_now(["cpu", "cuda"])
        with without_autocast():
            assert (x @ x).dtype == torch.float32
    assert kinds == [("cpu", torch.bfloat16)]
    assert autocast_now([]) == []
    with autocasting(kinds):
        assert (x @ x).dtype == torch.bfloat16


def test_arithmetic_beside_a_pass_records_no_gradient_and_is_not_cast_down():
    def settings():
        return torch.is_grad_enabled(), (x @ x).dtype

    def fail():
        raise ArithmeticError

    x = torch.ones(2, 2)
    for recorded in (True, False):
        for cast in (True, False):
            with torch.set_grad_enabled(recorded), torch.autocast("cpu", torch.bfloat16, enabled=cast):
                before = settings()
                assert beside(settings) == (False, torch.float32)
                with pytest.raises(ArithmeticError):
                    beside(fail)
                assert settings() == before
                assert before == (recorded, torch.bfloat16 if cast else torch.float32)


def test_streams_of_torch_alone():
    import numpy as np

    streams = RngState()
    drawn = torch.rand(2), np.random.rand()  # noqa: NPY002
    streams.restore(beside_torch=False)
    assert torch.equal(torch.rand(2), drawn[0])
    assert np.random.rand() != drawn[1]  # noqa: NPY002
    assert streams.drawn_beside_torch()
    streams.restore()
    assert not streams.drawn_beside_torch()
    assert streams.differences(RngState()) == []
