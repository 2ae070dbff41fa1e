"""A scope attached in one line: when steps begin and end, what the batch is, and that the training stays as it is."""

import gc
import random
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import normscope as ns
from kit.watched_loops import LOOPS, accumulating_loop, data, entropy, evaluating_loop, make, plain_loop, same, state_of
from normscope._errors import UsageError
from normscope.probes import ProbeWarning


@pytest.mark.parametrize("given", ["optimizer", "nothing"])
@pytest.mark.parametrize("loop", LOOPS)
def test_training_is_the_same_bit_for_bit_and_steps_are_counted_by_updates(loop, given):
    def train(watched):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scope = ns.watch(model, optimizer if given == "optimizer" else None, every=2) if watched else None
        torch.manual_seed(3)
        loop(model, optimizer, data(8))
        return state_of(model, optimizer), scope

    (plain, _), (watched, scope) = train(False), train(True)
    assert same(plain, watched)
    updates = 4 if loop is accumulating_loop else 8
    assert scope.index == updates
    frame = scope.records()
    assert sorted(set(frame["step"])) == list(range(0, updates, 2))
    assert set(frame["probe"]) == {probe.CODE for probe in scope.probes}
    assert scope.not_read == {}
    scope.detach()


@pytest.mark.parametrize("loop", LOOPS)
def test_the_values_are_those_of_a_with_block_around_the_step(loop):
    def train(attach):
        model = make(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scope = ns.Scope(model, None, optimizer, every=1)
        batches = data(4)
        if attach:
            scope.attach()
            loop(model, optimizer, batches)
        else:
            size = 2 if loop is accumulating_loop else 1
            for at in range(0, 4, size):
                with scope.step(None):  # it hears all passes that record gradients, evaluations too
                    (plain_loop if loop is evaluating_loop else loop)(model, optimizer, batches[at : at + size])
        return [(r.step, r.probe, r.site, r.name, r.value) for r in scope.drain()]

    assert train(True) == train(False)


def test_costly_probes_take_the_batch_that_the_model_was_called_with():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make()

        def forward(self, x, labels=None):
            return nn.functional.cross_entropy(self.net(x), labels)

    calls = {
        "keywords": (lambda m, x, y: m(x=x, labels=y), lambda m, b: m(**b)),
        "arguments": (lambda m, x, y: m(x, y), lambda m, b: m(*b)),
        "mixed": (lambda m, x, y: m(x, labels=y), lambda m, b: m(*b[:-1], **b[-1])),
    }
    found = {}
    for name, (call, loss_fn) in calls.items():
        model = WithLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = ns.watch(model, optimizer, loss_fn, probes=["landscape", "statistics_gap"], every=1)
        torch.manual_seed(3)
        for x, y in data(3):
            optimizer.zero_grad()
            call(model, x, y).backward()
            optimizer.step()
        found[name] = [(r.step, r.probe, r.name, r.value) for r in scope.drain()]
        assert found[name]
        scope.detach()
    assert found["keywords"] == found["arguments"] == found["mixed"]


def test_accumulated_batches_are_taken_one_by_one():
    model = make(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model, x):
        return model(x).square().mean()

    scope = ns.watch(model, optimizer, loss_fn, probes=["statistics_gap"], every=1)
    losses = []
    optimizer.zero_grad()
    for x, _ in data(3):
        loss = loss_fn(model, x)
        losses.append(loss.item())
        (loss / 3).backward()
    optimizer.step()
    values = {r.name: r.value for r in scope.drain() if r.site == ""}
    assert values["train_loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_what_cannot_be_known_is_said_with_the_reason():
    batches = data(2)

    def run(step, reason, loss_fn=lambda m, x: m(x).square().mean()):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = ns.watch(model, optimizer, loss_fn, probes=["landscape", "gradient_flow"], every=1)
        if loss_fn is None:
            step(model, optimizer)
        else:
            with pytest.warns(ProbeWarning, match=reason):
                step(model, optimizer)
        assert reason in scope.not_read["landscape"]
        assert set(scope.records()["probe"]) == {"gradient_flow"}

    def two_calls(model, optimizer):
        (model(batches[0][0]).sum() + model(batches[1][0]).sum()).backward()
        optimizer.step()

    def parts(model, optimizer):
        model[5](model[4](model[0](batches[0][0]))).sum().backward()
        optimizer.step()

    run(two_calls, "called 2 times for one loss")
    run(parts, "was not called, only its parts")
    run(parts, "no loss_fn", loss_fn=None)


def test_two_optimizers_make_one_step_and_a_rarer_one_delays_none():
    model = make()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.Adam([*model[1].parameters(), *model[4].parameters(), *model[5].parameters()])
    scope = ns.watch(model, [first, second], every=1)
    for x, y in data(3):
        model.zero_grad()
        entropy(model, (x, y)).backward()
        first.step()
        second.step()
    assert scope.index == 3
    for x, y in data(4):  # from now on the second optimizer rests
        model.zero_grad()
        entropy(model, (x, y)).backward()
        first.step()
    assert scope.index == 6  # the last one is under way
    assert set(scope.records()["step"]) == set(range(6))


def test_a_pass_that_a_scaler_throws_away_is_not_read():
    def train(scaler_skips):
        model = make(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scope = ns.watch(model, optimizer, probes=["gradient_flow", "activation_distribution"], every=2, scaler=scaler)
        for number, (x, y) in enumerate(data(6)):
            if scaler_skips and number == 2:
                kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
                model.zero_grad()
                (scaler.scale(nn.functional.cross_entropy(model(x), y)) * float("inf")).backward()
                scaler.step(optimizer)
                scaler.update(1024.0)
                for name, buffer in model.named_buffers():
                    buffer.copy_(kept[name])
            model.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update(1024.0)
        scope.detach()
        return [(r.step, r.probe, r.site, r.name, r.value) for r in scope.drain()]

    assert train(scaler_skips=True) == train(scaler_skips=False)


def test_an_optimizer_of_another_model_is_left_alone():
    model, other = make(), make()
    optimizer, others = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other))
    scope = ns.watch(model, every=1)
    plain_loop(other, others, data(3))
    assert scope.index == 0
    assert scope.optimizers == []
    plain_loop(model, optimizer, data(3))
    assert scope.index == 3
    assert scope.optimizers == [optimizer]


def test_detached_it_leaves_no_hook():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ns.watch(model, optimizer, every=1) as scope:
        plain_loop(model, optimizer, data(2))
        with pytest.raises(UsageError, match="attached already"):
            scope.attach()
    hooks = [vars(m)[kind] for m in model.modules() for kind in vars(m) if kind.endswith("_hooks")]
    assert not any(hooks)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    plain_loop(model, optimizer, data(2))
    assert scope.index == 2


def test_a_watched_training_that_nobody_needs_any_more_goes_with_its_scope():
    def train(given):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = ns.watch(model, optimizer if given else None, every=2)
        plain_loop(model, optimizer, data(3))
        return weakref.ref(model), weakref.ref(scope)

    for given in (True, False):
        model, scope = train(given)
        gc.collect()
        assert model() is None
        assert scope() is None


def test_a_scope_that_is_not_kept_watches_on():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = []

    class Board:
        def append(self, records):
            steps.append(records[0].step)

        def finding(self, finding): ...

        def close(self, report): ...

    ns.watch(model, every=2, sinks=[Board()])
    for batch in data(5):
        gc.collect()
        plain_loop(model, optimizer, [batch])
    assert steps == [0, 2, 4]


def test_steps_that_are_not_due_set_no_hook_on_the_model():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, every=3)
    counts = []
    for batch in data(5):
        counts.append(sum(len(m._forward_pre_hooks) for m in model.modules()))
        plain_loop(model, optimizer, [batch])
    assert [bool(count) for count in counts] == [True, False, False, True, False]
    scope.detach()


def test_a_step_that_breaks_off_in_a_callback_does_not_count():
    model = make()
    scope = ns.Scope(model, entropy, None, "gradient_flow", every=1)
    scope.end()  # nothing was begun
    (batch,) = data(1)
    scope.begin(batch)
    entropy(model, batch).backward()
    scope.begin(batch)  # the exception between was never told
    model.zero_grad()
    entropy(model, batch).backward()
    scope.end()
    scope.begin(batch)
    scope.end(RuntimeError())
    assert scope.index == 1
    assert set(scope.records()["step"]) == {0}


def test_an_error_in_the_engine_ends_the_watching_and_not_the_training(monkeypatch):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, every=1)
    monkeypatch.setattr(scope, "begin", lambda: 1 / 0)
    with pytest.warns(ProbeWarning, match=r"watches no further; training goes on: ZeroDivisionError"):
        plain_loop(model, optimizer, data(1))
    plain_loop(model, optimizer, data(3))  # and no second warning
    scope.detach()
    assert scope.not_read
    assert all(why.startswith("the scope failed at step 0: ZeroDivisionError") for why in scope.not_read.values())


def test_rules_run_on_a_watched_loop_without_a_loss_as_far_as_they_can():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, rules="all", every=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain_loop(model, optimizer, data(4))
    assert all(issubclass(warning.category, ns.checking.FindingWarning) for warning in caught)
    assert "NS122" in [finding.code for finding in scope.findings()]  # read off the modules
    assert any("no loss_fn" in reason for reason in scope.not_read.values())


# -- wiring ------------------------------------------------------------------------------------------------------------


def test_a_step_whose_batch_is_unknown_is_left_out_and_the_next_is_read():
    model = make(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, lambda m, x: m(x).square().mean(), probes=["statistics_gap", "loss"], every=1)

    def step(x, broken):
        optimizer.zero_grad()
        model(x).square().mean()  # a loss that is thrown away
        if broken:
            model(x)
        model(x).square().mean().backward()
        optimizer.step()

    batches = [x for x, _ in data(3)]
    with pytest.warns(ProbeWarning, match="'statistics_gap' left out step 0.*called 3 times"):
        step(batches[0], broken=True)
    optimizer.zero_grad()
    for x in batches[1:]:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    frame = scope.records()
    assert set(frame.filter(frame["name"] == "train_loss")["step"]) == {1, 2}
    assert set(frame.filter(frame["name"] == "loss")["step"]) == {0, 1, 2}
    assert scope.not_read == {}


@pytest.mark.parametrize(("probe_draws", "sink_draws"), [(True, False), (False, True)])
def test_what_a_probe_or_a_sink_draws_is_undone(probe_draws, sink_draws):
    class Drawing(ns.probes.Loss):
        __doc__ = ns.probes.Loss.__doc__
        CODE = "drawing"

        def read(self, step):
            torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
            yield from super().read(step)

    class Sink:
        def append(self, records):
            torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002

        def finding(self, finding): ...

        def close(self, report):
            torch.rand(3)

    def train(watched):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if watched:
            probes, sinks = [Drawing() if probe_draws else ns.probes.Loss()], [Sink()] if sink_draws else []
            scope = ns.watch(model, optimizer, probes=probes, sinks=sinks, every=1)
        plain_loop(model, optimizer, data(3))
        if watched:
            scope.close()
            scope.detach()
        return state_of(model, optimizer), random.getstate(), str(np.random.get_state())  # noqa: NPY002

    plain, watched = train(False), train(True)
    assert same(plain[0], watched[0])
    assert plain[1:] == watched[1:]


def test_a_model_whose_precision_changes_between_steps_is_read_on():
    model = make(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, lambda m, x: m(x).square().mean(), probes=["statistics_gap", "descent"], every=1)
    for number, (x, _) in enumerate(data(3)):
        if number == 1:
            model.double()
        optimizer.zero_grad()
        model(x if number == 0 else x.double()).square().mean().backward()
        optimizer.step()
    assert scope.not_read == {}
