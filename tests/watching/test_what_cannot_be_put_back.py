"""What a replay or a check cannot put back is refused by name, or named once it has happened."""

import warnings

import numpy as np
import pytest
import torch

import normscope as ns
from kit.far_reaching_loops import Loop, batches, net, train
from kit.heard import Heard
from kit.traces import differences
from normscope.modules import reaching
from normscope.probes import ProbeWarning, WiringWarning


def told(loss_fn, model=None, codes=("landscape", "curvature", "gradient_flow"), **options):
    """Return the warnings of a training with a scope, and the scope."""
    torch.manual_seed(0)
    loop = Loop(model or net(), loss_fn)
    scope = ns.Scope(loop.model, loss_fn, loop.optimizer, codes, every=2, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(loop, scope)
    return [str(warning.message) for warning in caught if warning.category is ProbeWarning], scope


class Feed:
    def __init__(self):
        self.noise = iter(torch.randn(99, 16, 4))

    def next_noise(self):
        return next(self.noise)


def loss_on_a_generator():
    noise = (torch.randn(16, 4) for _ in range(99))
    return lambda model, batch: (model(batch[0]) - next(noise)).square().mean()


def loss_on_an_object_with_an_iterator():
    feed = Feed()
    return lambda model, batch: (model(batch[0]) - feed.next_noise()).square().mean()


def loss_on_a_loader():
    loader = iter(torch.utils.data.DataLoader(torch.randn(160, 4), batch_size=16))

    def loss_fn(model, batch, noise=loader):
        return (model(batch[0]) - next(noise)).square().mean()

    return loss_fn


@pytest.mark.parametrize("make", [loss_on_a_generator, loss_on_an_object_with_an_iterator, loss_on_a_loader])
def test_an_iterator_is_refused_by_name_before_anything_is_taken_from_it(make):
    loss_fn = make()
    calls = Heard()

    def counted(model, batch):
        calls.append(1)
        return loss_fn(model, batch)

    (message,), scope = told(counted)
    assert "'landscape', 'curvature' failed at step 0 and are switched off" in message
    assert "noise, an iterator (" in message
    assert calls.count() == 4  # the loop's own
    assert set(scope.records()["probe"]) == {"gradient_flow"}
    assert set(scope.not_read) == {"landscape", "curvature"}
    assert all("noise, an iterator" in reason for reason in scope.not_read.values())
    with pytest.raises(ns.NormscopeError, match="noise, an iterator"):
        ns.check(ns.Case(net(), make(), batches()))


def test_what_cannot_be_put_back_is_named_after_the_first_replay_and_ends_the_probes_that_replay():
    noise = {"all": [iter(torch.randn(999, 16, 4))]}  # no name of the code is the iterator's
    calls = Heard()

    def loss_fn(model, batch):
        calls.append(1)
        key, position = "all", 0
        return (model(batch[0]) - next(noise[key][position])).square().mean()

    (message,), scope = told(loss_fn)
    assert "'landscape', 'curvature' failed at step 0" in message
    assert "has changed what could not be put back: noise.all.0. Name what holds it in also=" in message
    assert set(scope.not_read) == {"landscape", "curvature"}
    assert scope.records()["step"].to_list().count(2) == scope.records().filter(probe="gradient_flow", step=2).height
    with pytest.warns(
        ns.evidence.TraceWarning, match=r"the check has changed what it could not put back: noise\.all\.0"
    ):
        ns.check(ns.Case(net(), loss_fn, batches()))


@pytest.mark.parametrize("write", ["in place", "through data", "array"])
def test_what_is_too_large_to_be_copied_is_named_once_it_was_written(write, monkeypatch):
    monkeypatch.setattr(reaching, "LARGE", 100)  # white box: small things are large
    monkeypatch.setattr(reaching, "BUDGET", 5000)
    bank, array, only_read = torch.zeros(2000, 4), np.zeros((2000, 4)), torch.ones(3000, 4)

    def loss_fn(model, batch):
        out = model(batch[0])
        if write == "array":
            array[:16] = out.detach().numpy()
        else:
            (bank if write == "in place" else bank.data)[:16] = out.detach()
        return (out - bank[:16] - only_read[0]).square().mean()

    (message,), _ = told(loss_fn)
    assert f"put back: {'array' if write == 'array' else 'value of bank'}. Name" in message


@pytest.mark.parametrize("write", ["in place", "through data", "array"])
def test_what_is_large_and_written_only_later_is_named_then(write, monkeypatch):
    monkeypatch.setattr(reaching, "LARGE", 100)  # white box: small things are large
    bank, array, calls = torch.zeros(9000, 4), np.zeros((9000, 4)), Heard()

    def loss_fn(model, batch):
        calls.append(1)
        out = model(batch[0])
        if calls.count() > begins:
            if write == "array":
                array[:16] += out.detach().numpy()
            else:
                (bank if write == "in place" else bank.data)[:16] += out.detach()
        return (out - bank[:16] - torch.from_numpy(array[:16]).float()).square().mean()

    torch.manual_seed(0)
    loop, heard = Loop(net(), loss_fn), []
    scope = ns.Scope(loop.model, loss_fn, loop.optimizer, ["descent"], every=1)
    begins = 10**9
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in batches():
            with scope.step(batch):
                loop.step(loop.model, batch)
            heard.append([str(warning.message) for warning in caught if warning.category is ProbeWarning])
            begins = 0 if len(heard) == 2 else begins
    assert heard[:2] == [[], []]
    ((message,),) = heard[2:3]
    assert "'descent' failed at step 2" in message
    assert f"put back: {'array' if write == 'array' else 'value of bank'}. Name" in message


def test_what_is_large_and_only_read_is_copied_once_and_then_watched(monkeypatch):
    monkeypatch.setattr(reaching, "LARGE", 100)  # white box: small things are large
    copied = []
    kept = reaching.Values.__init__

    def keep(self, named):
        copied.append({name for name, _ in named})
        kept(self, named)

    monkeypatch.setattr(reaching.Values, "__init__", keep)
    data, bank = torch.randn(50, 4), torch.zeros(50, 4)

    def loss_fn(model, batch):
        out = model(batch[0])
        bank[:16] = out.detach()
        return (out - bank[:16] - data[0]).square().mean()

    assert told(loss_fn)[0] == []
    beside = ["value of data" in names for names in copied if "value of bank" in names]
    assert beside[:2] == [True, True]  # as the first step begins, and as it ends
    assert len(beside) > 3
    assert not any(beside[2:])


def test_what_is_large_and_written_by_the_step_alone_is_kept_as_the_step_began(monkeypatch):
    """The loss reads an average that the step moves: its gradient is the loop's only with the average of before."""
    monkeypatch.setattr(reaching, "LARGE", 100)
    torch.manual_seed(0)
    model, average = net(), torch.zeros(16, 4)

    def loss_fn(model, batch):
        return (model(batch[0]) - average).square().mean()

    def step(model, batch):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        average.lerp_(model(batch[0]).detach(), 0.5)

    losses, optimizer = [], torch.optim.SGD(model.parameters(), 0.1)
    scope = ns.Scope(model, loss_fn, optimizer, ["landscape"], every=1)
    train(Loop(model, loss_fn, step, optimizer), scope)
    read = scope.records().filter(name="loss", site="").sort("step")["value"].to_list()
    assert read == pytest.approx(losses, rel=1e-6)


# -- also --------------------------------------------------------------------------------------------------------------


class Hiding:
    """Of a package whose objects are left alone."""

    def __init__(self):
        self.count, self.average = 0, torch.zeros(4)

    def follow(self, out):
        self.count += 1
        self.average.lerp_(out.detach().mean(0), 0.1)
        return self.average


Hiding.__module__ = "wandb"


@pytest.mark.parametrize("named", [True, False])
def test_what_is_named_in_also_is_put_back(named):
    def run(scoped):
        torch.manual_seed(0)
        hiding = Hiding()

        def loss_fn(model, batch):
            return (model(batch[0]) - hiding.follow(model(batch[0]))).square().mean()

        loop = Loop(net(), loss_fn, hiding=hiding)
        also = [hiding] if named else []
        if scoped == "check":
            ns.check(ns.Case(loop.model, loss_fn, batches(), loop.optimizer, also=also))
        scope = ns.Scope(loop.model, loss_fn, loop.optimizer, ["landscape"], every=2, also=also)
        return train(loop, *([scope] if scoped == "scope" else []))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if not named else "error", WiringWarning)
        assert (differences(run("scope"), run("")) == []) is named
    assert (differences(run("check"), run("")) == []) is named
