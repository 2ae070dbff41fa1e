"""The user's own gradient stands for a pass of the probes' own where it is proven to be the same, and only there."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kit import varied_networks as nets
from kit.heard import Heard
from kit.training_loops import Accumulating, Autocast, Clipped, Loop, Scaled, values
from normscope import probes

# white box: the pass is not kept, or its check is switched off, to see what each is worth.
from normscope.probes import Recorder, _users_pass
from normscope.probes._forward_batch import ForwardBatches  # white box: what is heard of a call shows nowhere else


def probe():
    return probes.LandscapeAlongGradient(points=1, dense=(), matchings=("relative-step",), curvature=False)


def passes(loop, *, steps):
    """Count the calls of the loss at each step, the loop's own left out, and return the records too."""
    heard, inner = Heard(), loop.loss_fn

    def loss_fn(model, batch):
        heard.append(loop.scope.index)
        return inner(model, batch)

    def block(scope, model, optimizer, batch):
        loop.loss_fn = inner
        type(loop).block(loop, scope, model, optimizer, batch)
        loop.loss_fn = loss_fn

    loop.loss_fn, loop.block = loss_fn, block
    records = loop.run([probe()], every=1, steps=steps)[1]
    calls = heard.all()
    return [calls.count(step) for step in range(steps)], records


def without_reuse(loop, monkeypatch, *, steps):
    with monkeypatch.context() as patch:
        # white box: without it every origin is computed
        patch.setattr(_users_pass.UsersPass, "origin", lambda self, replay: (replay.reset(), replay.evaluate())[1])
        return loop.run([probe()], steps=steps, every=1)[1]


@pytest.mark.parametrize("loop", [Loop, Autocast, Scaled, Clipped])
def test_it_is_taken_once_it_is_proven(loop, monkeypatch):
    counts, records = passes(loop(), steps=4)
    # The trial on kept outputs, and the point on the line; at the first step the whole origin too, and under autocast
    # the beginning of the loss, to see whether it turns autocast on by itself.
    assert counts == [4 if loop is Autocast else 3, 2, 2, 2]
    assert records == without_reuse(loop(), monkeypatch, steps=4)


def test_accumulated_thirds_are_not_bit_for_bit_and_so_never_taken(monkeypatch):
    counts, records = passes(Accumulating(), steps=3)
    assert counts == [9, 6, 6]
    assert records == without_reuse(Accumulating(), monkeypatch, steps=3)


class Changing(Loop):
    """The loop's loss is the scope's only at the first step."""

    def __init__(self, change):
        self.change = change

    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        later = scope.index > 0
        if later and self.change == "weights":
            with torch.no_grad():
                model[0].weight.clamp_(-0.1, 0.1)
        loss = self.loss_fn(model, batch)
        (loss * 2 if later and self.change == "factor" else loss).backward(retain_graph=True)
        if later and self.change == "second pass":
            nets.loss_fn(model, batch).backward()
        if later and self.change == "backward again":
            loss.backward()
        optimizer.step()


CHANGES = {"weights": 2, "factor": 3, "second pass": 3, "backward again": 3}


@pytest.mark.parametrize("change", CHANGES)
def test_a_pass_that_is_not_the_origin_any_more_is_noticed(change, monkeypatch):
    counts, records = passes(Changing(change), steps=3)
    assert counts == [3, CHANGES[change], CHANGES[change]]
    assert records == without_reuse(Changing(change), monkeypatch, steps=3)


def test_with_the_check_off_the_changed_loop_is_read_wrongly(monkeypatch):
    sure = values(without_reuse(Changing("factor"), monkeypatch, steps=3), "gradient_norm")
    # white box: the comparison is switched off
    monkeypatch.setattr(_users_pass, "_same_gradient", lambda part, gradient: True)
    assert values(passes(Changing("factor"), steps=3)[1], "gradient_norm") != sure


def test_a_loss_that_does_not_go_through_the_models_call_is_never_taken(monkeypatch):
    class Inside(Loop):
        def loss_fn(self, model, batch):
            h = batch[0]
            for layer in model:
                h = layer(h)
            return F.cross_entropy(h, batch[1])

    counts, records = passes(Inside(), steps=3)
    assert counts == [3, 2, 2]
    assert records == without_reuse(Inside(), monkeypatch, steps=3)


def test_a_mode_that_changes_is_proven_anew():
    loop = Loop()
    inner = Loop.block

    def block(scope, model, optimizer, batch):
        model.train(scope.index != 2)
        inner(loop, scope, model, optimizer, batch)

    loop.block = block
    loop.run([probe()], steps=4, every=1)
    assert sorted(loop.scope._loop.proven.values()) == [True, True]
    assert isinstance(loop.scope, Recorder)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_batch_given_by_keywords_is_heard_as_one_given_by_place(by_name):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(12, 4)

        def forward(self, x, y):
            return F.cross_entropy(self.inner(x), y)

    model, (batch,) = Named(), nets.batches("mlp", 1)
    taken = []
    heard = ForwardBatches(model, taken.append)
    heard.attach()
    model(**dict(zip("xy", batch, strict=True))) if by_name else model(*batch)
    heard.detach()
    model(*batch)
    (found,) = taken
    found = (found["x"], found["y"]) if by_name else found
    assert all(torch.equal(one, other) for one, other in zip(found, batch, strict=True))
