"""Leaks that are planted on purpose are seen, or undone; probes that raise are reported and switched off."""

import warnings
from functools import cache

import pytest

from kit import varied_networks as nets
from kit.planted_leaks import LEAKS, STREAMS
from kit.traces import differences
from kit.training_loops import train
from normscope import probes
from normscope.probes import AbstractProbe, ProbeWarning, Recorder

# Networks without tokens have no stream that one probe reads.
CODES = [probe.CODE for probe in probes.all() if probe.CODE != "residual_stream"]
PAGE = "\n\n## Measures\nx\n\n## Cost\nx\n\n## Reads wrongly when\nx\n"


@cache
def plain(name):
    return train(name)


def attach(codes, every=1, loss_fn=nets.loss_fn):
    def make(model, optimizer):
        return Recorder(model, loss_fn, optimizer, probes=codes, every=every)

    return make


def test_streaming_probes_leave_no_trace_at_every_step():
    codes = [probe.CODE for probe in probes.all() if not probe.REPLAYS]
    assert differences(train("residual", attach(codes)), plain("residual")) == []


def test_no_trace_after_an_exception_in_the_loss_of_all_probes():
    def failing(model, batch):
        nets.loss_fn(model, batch)
        raise ArithmeticError("no")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train("residual", attach(CODES, 4, failing))
    (told,) = caught  # one warning of all that fail alike
    assert all(probe.CODE in str(told.message) for probe in probes.all() if probe.REPLAYS)
    assert differences(result, plain("residual")) == []


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


@pytest.mark.parametrize("leak", LEAKS)
def test_the_comparison_catches_a_planted_leak(leak):
    def make(model, optimizer):
        return Recorder(model, nets.loss_fn, optimizer, probes=[Leaky(LEAKS[leak])], every=19)

    # What a probe draws from a random stream is undone, wherever it draws.
    assert bool(differences(train("mlp", make), plain("mlp"))) is (leak not in STREAMS)


@pytest.mark.parametrize("stream", STREAMS)
def test_the_comparison_catches_what_a_loop_draws(stream):
    def make(model, optimizer):
        LEAKS[stream](model)
        return Recorder(model, nets.loss_fn, optimizer, probes=[], every=19)

    assert differences(train("mlp", make), plain("mlp")) != []


@pytest.mark.parametrize("leak", LEAKS)
def test_leaks_inside_the_replay_are_undone(leak):
    def make(model, optimizer):
        return Recorder(model, nets.loss_fn, optimizer, probes=[LeakyReplay(LEAKS[leak])], every=19)

    assert differences(train("mlp", make), plain("mlp")) == []


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
        scopes.append(Recorder(model, nets.loss_fn, optimizer, probes=[Failing(where), "gradient_flow"], every=5))
        return scopes[0]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train("mlp", make)
    assert [str(warning.message) for warning in caught if warning.category is ProbeWarning] == [
        "probe 'failing' failed at step 0 and is switched off; training goes on: ValueError: broken"
    ]
    assert differences(result, plain("mlp")) == []
    seen = {(record.probe, record.step) for record in scopes[0].drain()}
    assert seen == {("gradient_flow", step) for step in (0, 5, 10, 15)}


@pytest.mark.parametrize("net", ["dropout", "cnn"])
def test_two_runs_give_the_same_records(net):
    def run():
        scopes = []

        def make(model, optimizer):
            scopes.append(Recorder(model, nets.loss_fn, optimizer, probes=CODES, every=10))
            return scopes[0]

        train(net, make)
        return scopes[0].drain()

    first = run()
    assert first == run()
    assert {record.probe for record in first} == set(CODES)
