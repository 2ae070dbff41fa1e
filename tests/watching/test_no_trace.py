"""Training is bit-identical with a scope, with every probe that replays, and after a check: on loops that reach further
than their model, compared by a walk over everything that they reach.
"""

import contextlib
import functools
import warnings

import pytest

import normscope as ns
from kit.far_reaching_loops import ZOO, batches, begin, train
from kit.traces import differences
from normscope import probes
from normscope.modules import reach, reaching
from normscope.probes import WiringWarning

REPLAYING = [probe.CODE for probe in probes.all() if probe.REPLAYS]


@functools.cache
def untouched(name):
    return train(begin(name))


def watched(name, codes=REPLAYING, **options):
    loop = begin(name)
    scope = ns.Scope(loop.model, loop.loss_fn, loop.optimizer, codes, every=2, **options)
    return train(loop, scope), scope


# The loop updates the critic before it asks it for the generator's loss: that loss is not the one at the step's begin.
@pytest.mark.filterwarnings("ignore::normscope.probes.WiringWarning")
def test_a_scope_around_both_updates_of_a_gan_leaves_no_trace_in_the_second():
    assert differences(watched("GAN, generator")[0], untouched("GAN, generator")) == []


@pytest.mark.parametrize("name", [name for name in ZOO if name != "GAN, generator"])
def test_a_scope_leaves_no_trace_in_what_the_loss_reaches(name):
    trace, scope = watched(name)
    assert differences(trace, untouched(name)) == []
    assert set(scope.records()["probe"]) == set(REPLAYING)


@pytest.mark.parametrize("name", ZOO)
def test_a_check_leaves_no_trace_in_what_loss_and_step_reach(name):
    loop = begin(name)
    before = loop.trace()
    ns.check(ns.Case(loop.model, loop.loss_fn, batches(), loop.optimizer, step=loop.step))
    assert differences(loop.trace(), before) == []
    assert differences(train(loop), untouched(name)) == []


REACHING_FAR = ["GAN, critic", "mean teacher", "codebook beside, attributes", "array", "callable"]


@pytest.mark.parametrize("code", REPLAYING)
@pytest.mark.parametrize("name", ["mean teacher", "callable"])
def test_each_probe_that_replays_leaves_no_trace_by_itself(name, code):
    trace, scope = watched(name, [code])
    assert differences(trace, untouched(name)) == []
    assert set(scope.records()["probe"]) == {code}


@pytest.mark.parametrize("name", REACHING_FAR)
def test_two_scopes_and_rules_on_one_model_leave_no_trace(name):
    loop = begin(name)
    codes = ["landscape", "curvature"]
    scopes = [ns.Scope(loop.model, loop.loss_fn, loop.optimizer, codes, every=2) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ns.checking.FindingWarning)
        scopes.append(ns.Scope(loop.model, loop.loss_fn, loop.optimizer, [], rules="all", every=2))
        trace = train(loop, *scopes)
    assert differences(trace, untouched(name)) == []
    assert scopes[2].findings().rules


@pytest.mark.parametrize("name", ZOO)
def test_a_check_whose_step_raises_leaves_no_trace(name):
    loop = begin(name)
    before, whole = loop.trace(), loop.step

    def step(model, batch):
        whole(model, batch)
        raise ArithmeticError("no")

    with contextlib.suppress(ns.NormscopeError):
        ns.check(ns.Case(loop.model, loop.loss_fn, batches(), loop.optimizer, step=step))
    assert differences(loop.trace(), before) == []


@pytest.mark.parametrize("name", ["GAN, critic", "distillation", "memory bank", "array", "globals", "cell"])
def test_of_the_test_without_the_walk_and_the_hook_training_differs(name, monkeypatch):
    monkeypatch.setattr(reach.CodeWalk, "parts", lambda self, value: iter(()))
    monkeypatch.setattr(reaching.ReachingSnapshot, "noting", lambda self: contextlib.nullcontext())
    monkeypatch.setattr(reaching.ReachingSnapshot, "note_left", lambda self, learn: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WiringWarning)
        assert differences(watched(name)[0], untouched(name)) != []
