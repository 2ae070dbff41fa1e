"""What a loss reaches is as it was before each evaluation of a step, whatever the evaluations before it have moved."""

import numpy as np
import pytest
import torch
from torch import nn

from normscope.modules import reaching
from normscope.modules.reach import Reach
from normscope.modules.rewind import Rewind


class Counter:
    def __init__(self):
        self.seen = 0


def moving(kind):
    """Return a model and a function that tells something and, if asked, moves it."""
    model = nn.Sequential(nn.Linear(2, 2))
    if kind == "torch generator":
        stream = torch.Generator().manual_seed(0)
        return model, lambda moves: torch.rand(1, generator=stream).item() if moves else stream.get_state().sum().item()
    if kind == "numpy generator":
        stream = np.random.default_rng(0)
        return model, lambda moves: stream.random() if moves else 0.0
    kept = {
        "tensor": torch.zeros(3),
        "array": np.zeros(3),
        "list": [0.0],
        "object": Counter(),
        "gradient": torch.zeros(3, requires_grad=True),
        "module attribute": None,
    }[kind]

    def act(moves):
        if kind in ("tensor", "array"):
            found = float(kept.sum())
            kept[0] += moves
        elif kind == "list":
            found = float(len(kept))
            kept.extend([1.0] * moves)
        elif kind == "object":
            found = float(kept.seen)
            kept.seen = kept.seen + 1 if moves else kept.seen
        elif kind == "gradient":
            found = float(kept.grad is None)
            if moves:
                kept.grad = torch.ones(3)
        else:
            found = float(getattr(model[0], "calls", 0))
            if moves:
                model[0].calls = getattr(model[0], "calls", 0) + 1
        return found

    if kind == "module attribute":
        model[0].calls = 0
    return model, act


KINDS = ["torch generator", "numpy generator", "tensor", "array", "list", "object", "gradient", "module attribute"]


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_evaluation_sees_what_the_first_has_seen(kind, first):
    """Also where the first evaluations move nothing: probes may begin with one on kept outputs, without the model."""
    model, act = moving(kind)
    rewind = Rewind(Reach({"loss_fn": act}), model)
    found = []
    for turn in range(8):
        rewind.rewind()
        found.append(act(turn >= first))
    assert len({*found[first:]}) == 1, found


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_rewind_they_would_not(kind):
    _, act = moving(kind)
    assert len({act(True) for _ in range(8)}) > 1


def test_what_the_replay_exchanges_and_what_the_update_has_moved_is_left_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)

    def step():
        optimizer.zero_grad()
        model(torch.randn(4, 2)).square().sum().backward()
        optimizer.step()

    def loss_fn(model, batch):
        return model(batch).sum() * optimizer.param_groups[0]["lr"]

    step()
    rewind = Rewind(Reach({"loss_fn": loss_fn}), model)
    step()
    model.eval()
    substitute = nn.Parameter(torch.ones(2, 2))
    model[0]._parameters["weight"] = substitute
    vars(model[0])["forward"] = forward = model[0].forward
    moved = [{key: value.clone() for key, value in each.items()} for each in optimizer.state.values()]
    for _ in range(5):
        rewind.rewind()
    assert not model.training
    assert model[0].weight is substitute
    assert vars(model[0])["forward"] is forward
    for before, now in zip(moved, optimizer.state.values(), strict=True):
        assert all(torch.equal(before[key], now[key]) for key in before)


def test_what_is_large_is_put_back_where_steps_write_it_though_no_evaluation_does(monkeypatch):
    monkeypatch.setattr(reaching, "LARGE", 4)  # white box: small things are large
    model, average = nn.Sequential(nn.Linear(2, 2)), torch.zeros(9)

    def loss_fn(model, batch):
        return (model(batch).sum() - average).square().sum()

    reach = Reach({"loss_fn": loss_fn})
    for step in range(3):
        rewind = Rewind(reach, model)
        average += 1  # the step moves it
        snapshot = reaching.ReachingSnapshot(reach, model)
        rewind.rewind()
        assert float(average[0]) == step
        snapshot.restore()
        snapshot.note_left(learn=True)
        assert float(average[0]) == step + 1
    assert reach.left == []
