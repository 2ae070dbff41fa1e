"""The loss is that of the loop, and torch's own backward is back afterwards."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normscope.modules.backward import on_backward
from normscope.probes import Recorder

ORIGINAL = torch.autograd.backward


def setting():
    torch.manual_seed(3)
    model = nn.Linear(4, 3)
    batch = torch.randn(8, 4), torch.randint(0, 3, (8,))
    return model, batch, torch.optim.SGD(model.parameters(), lr=0.1)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def recorded(scope):
    frame = scope.records()
    return dict(zip(frame["step"], frame["value"], strict=True))


def test_it_is_the_loss_on_which_backward_was_called():
    model, batch, optimizer = setting()
    scope = Recorder(model, loss_fn, optimizer, ["loss"], every=2)
    losses = {}
    for step in range(4):
        with scope.step(batch):
            assert (torch.autograd.backward is ORIGINAL) is (step % 2 == 1)
            loss = loss_fn(model, batch)
            losses[step] = loss.item()
            loss.backward()
            optimizer.step()
        assert torch.autograd.backward is ORIGINAL
    assert recorded(scope) == {0: losses[0], 2: losses[2]}


def test_parts_are_summed_and_the_scale_is_taken_out():
    model, batch, optimizer = setting()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scope = Recorder(model, loss_fn, optimizer, ["loss"], scaler=scaler, every=1)
    with scope.step(batch):
        halves = [(batch[0][:4], batch[1][:4]), (batch[0][4:], batch[1][4:])]
        whole = loss_fn(model, batch).item()
        for half in halves:
            scaler.scale(loss_fn(model, half) / 2).backward()
        scaler.step(optimizer)
        scaler.update()
    assert recorded(scope)[0] == pytest.approx(whole, rel=1e-6)


def test_without_backward_on_a_scalar_there_is_no_loss():
    model, batch, optimizer = setting()
    scope = Recorder(model, loss_fn, optimizer, ["loss"], every=1)
    with scope.step(batch):
        out = model(batch[0])
        out.backward(torch.ones_like(out))
        optimizer.step()
    assert scope.records().is_empty()
    assert torch.autograd.backward is ORIGINAL


def test_an_exception_in_the_step_ends_the_listening():
    model, batch, optimizer = setting()
    scope = Recorder(model, loss_fn, optimizer, ["loss"], every=1)
    with pytest.raises(KeyError), scope.step(batch):
        raise KeyError("mine")
    assert torch.autograd.backward is ORIGINAL


def test_two_listeners_end_in_any_order_and_a_stranger_in_between_stays():
    heard = []
    first, second = on_backward(lambda loss: heard.append(("first", float(loss)))), on_backward(lambda loss: None)
    ours = torch.autograd.backward

    def strangers(*args, **kwargs):
        heard.append("stranger")
        return ours(*args, **kwargs)

    torch.autograd.backward = strangers
    try:
        first.remove()
        first.remove()  # a second time does nothing
        second.remove()
        assert torch.autograd.backward is strangers
        torch.tensor(2.0, requires_grad=True).backward()
        assert heard == ["stranger"]
        again = on_backward(lambda loss: heard.append(float(loss)))
        torch.tensor(2.0, requires_grad=True).backward()
        again.remove()
        assert heard == ["stranger", 2.0, "stranger"]  # once, though the first function is still below the stranger's
        assert torch.autograd.backward is strangers
    finally:
        torch.autograd.backward = ORIGINAL
