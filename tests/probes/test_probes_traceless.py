"""Training with a scope is bit for bit training without one."""

import random
import warnings
from functools import cache

import numpy as np
import probe_nets as nets
import pytest
import torch

from normscope import probes
from normscope.probes import AbstractProbe, ProbeWarning, Scope, Snapshot

CODES = [probe.CODE for probe in probes.all()]
PAGE = "\n\n## Measures\nx\n\n## Cost\nx\n\n## Reads wrongly when\nx\n"


@cache
def plain(name):
    return nets.train(name)


def attach(codes, every=1, loss_fn=nets.loss_fn):
    def make(model, optimizer):
        return Scope(model, loss_fn, optimizer, probes=codes, every=every)

    return make


@pytest.mark.parametrize("net", nets.NETS)
@pytest.mark.parametrize("codes", [*([code] for code in CODES), CODES], ids=lambda codes: "+".join(codes))
def test_leaves_no_trace(net, codes):
    every = 7 if len(codes) > 1 else 3
    assert nets.traces(nets.train(net, attach(codes, every)), plain(net)) == []


def test_streaming_probes_leave_no_trace_at_every_step():
    codes = [probe.CODE for probe in probes.all() if not probe.REPLAYS]
    assert nets.traces(nets.train("residual", attach(codes)), plain("residual")) == []


@pytest.mark.parametrize("at_call", [1, 2, 9])
def test_no_trace_after_an_exception_in_the_replayed_loss(at_call):
    calls = 0

    def failing(model, batch):
        nonlocal calls
        loss = nets.loss_fn(model, batch)
        calls += 1
        if calls == at_call:
            model[0].bias.data.zero_()
            model[1].running_mean.add_(1)
            raise ArithmeticError("no")
        return loss

    with pytest.warns(ProbeWarning, match="switched off.*ArithmeticError: no") as caught:
        result = nets.train("mlp", attach(CODES, 4, failing))
    assert len(caught) == 1
    assert nets.traces(result, plain("mlp")) == []


def test_an_exception_in_the_users_block_leaves_no_hooks_and_no_records():
    model, (batch,) = nets.make("residual"), nets.batches("residual", 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scope = Scope(model, nets.loss_fn, optimizer, probes=CODES, every=1)
    before = Snapshot(model)
    with pytest.raises(KeyError, match="mine"), scope.step(batch):  # noqa: PT012
        nets.loss_fn(model, batch)
        raise KeyError("mine")
    assert scope.drain() == []
    left = [found for found in before.differences() if "running" not in found and "num_batches" not in found]
    assert left == ["torch's CPU stream"]  # the user's own dropout
    assert not optimizer._optimizer_step_pre_hooks
    with scope.step(batch):
        nets.loss_fn(model, batch).backward()
    assert {record.step for record in scope.drain()} == {0}


class Leaky(AbstractProbe):
    __doc__ = "Leaks." + PAGE
    CODE, SOURCES = "leaky", ()

    def __init__(self, leak, **options):
        super().__init__(**options)
        self.leak = leak

    def read(self, step):
        self.leak(step.model)
        yield self.record(step, "", "leak", 1.0)


class LeakyReplay(Leaky):
    __doc__ = "Leaks while the replay is open." + PAGE
    REPLAYS = True


def set_grad(model):
    model[0].weight.grad = torch.ones_like(model[0].weight)


LEAKS = {
    "buffer": lambda model: model[1].running_mean.add_(1e-7),
    "parameter": lambda model: model[0].weight.data.mul_(1 + 1e-6),
    "stream": lambda model: torch.rand(1),
    "numpy": lambda model: np.random.rand(),  # noqa: NPY002
    "python": lambda model: random.random(),
    "gradient": set_grad,
    "mode": lambda model: model.eval(),
    "hook": lambda model: model[2].register_forward_hook(lambda *_: None),
    "frozen": lambda model: model[0].weight.requires_grad_(False),
    "attribute": lambda model: setattr(model[0], "left", 1),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_the_comparison_catches_a_planted_leak(leak):
    def make(model, optimizer):
        return Scope(model, nets.loss_fn, optimizer, probes=[Leaky(LEAKS[leak])], every=19)

    assert nets.traces(nets.train("mlp", make), plain("mlp")) != []


@pytest.mark.parametrize("leak", LEAKS)
def test_leaks_inside_the_replay_are_undone(leak):
    def make(model, optimizer):
        return Scope(model, nets.loss_fn, optimizer, probes=[LeakyReplay(LEAKS[leak])], every=19)

    assert nets.traces(nets.train("mlp", make), plain("mlp")) == []


@pytest.mark.parametrize("leak", LEAKS)
def test_a_snapshot_sees_and_undoes_a_leak(leak):
    model, (batch,) = nets.make("mlp"), nets.batches("mlp", 1)
    nets.loss_fn(model, batch).backward()
    gradient = model[0].weight.grad
    before = Snapshot(model)
    LEAKS[leak](model)
    assert before.differences() != []
    before.restore()
    assert before.differences() == []
    assert model[0].weight.grad is gradient


def test_a_snapshot_gives_back_absent_gradients_and_leaves_a_kept_graph_valid():
    model, (batch,) = nets.make("mlp"), nets.batches("mlp", 1)
    loss = nets.loss_fn(model, batch)
    before = Snapshot(model)
    set_grad(model)
    before.restore()
    assert model[0].weight.grad is None
    loss.backward()


class Failing(AbstractProbe):
    __doc__ = "Fails." + PAGE
    CODE, SOURCES, REPLAYS = "failing", (), True

    def __init__(self, where):
        super().__init__()
        self.where = where

    def watch(self, step):
        if self.where == "watch":
            raise ValueError("broken")
        if self.where == "hook":
            step.on_output(self, step.model, self.fail)

    def before_update(self, step, parameters):
        if self.where == "update":
            raise ValueError("broken")

    def fail(self, output):
        raise ValueError("broken")

    def read(self, step):
        yield self.record(step, "", "half", 1.0)
        step.replay.origin()
        step.replay.move(step.replay.origin().gradient, 1.0)
        raise ValueError("broken")


@pytest.mark.parametrize("where", ["watch", "hook", "update", "read"])
def test_a_failing_probe_is_reported_once_and_switched_off(where):
    scopes = []

    def make(model, optimizer):
        scopes.append(Scope(model, nets.loss_fn, optimizer, probes=[Failing(where), "gradient_flow"], every=5))
        return scopes[0]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = nets.train("mlp", make)
    assert [str(warning.message) for warning in caught if warning.category is ProbeWarning] == [
        "probe 'failing' failed at step 0 and is switched off; training goes on: ValueError: broken"
    ]
    assert nets.traces(result, plain("mlp")) == []
    seen = {(record.probe, record.step) for record in scopes[0].drain()}
    assert seen == {("gradient_flow", step) for step in (0, 5, 10, 15)}


@pytest.mark.parametrize("net", ["dropout", "cnn"])
def test_two_runs_give_the_same_records(net):
    def run():
        scopes = []

        def make(model, optimizer):
            scopes.append(Scope(model, nets.loss_fn, optimizer, probes=CODES, every=10))
            return scopes[0]

        nets.train(net, make)
        return scopes[0].drain()

    first = run()
    assert first == run()
    assert {record.probe for record in first} == set(CODES)
