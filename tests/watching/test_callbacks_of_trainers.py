"""What callbacks of trainers share: the scope begins with the training, and leaves the model as it ends."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kit.traces import differences, fingerprint
from normscope.watching import WatchedTraining


class Trainer:
    """A trainer of somebody else's: it clips the gradients of two batches, and calls a callback."""

    def __init__(self, callback, *, parts=2, fails_at=None):
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.callback, self.parts, self.fails_at = callback, parts, fails_at
        self.losses, self.norms = [], []

    def fit(self, steps, *, start=0):
        if self.callback is not None:
            self.callback.start(self.model, self.optimizer, loss_fn=loss_fn, start=start)
        for step in range(start, start + steps):
            self.step(step)
        if self.callback is not None:
            self.callback.on_train_end()
        return self

    def step(self, step):
        total = 0.0
        for part in range(self.parts):
            seed = torch.Generator().manual_seed(10 * step + part)
            batch = torch.randn(6, 4, generator=seed), torch.randint(2, (6,), generator=seed)
            if self.callback is not None:
                self.callback.begin(batch, 1 / self.parts)
            if step == self.fails_at:
                raise KeyError("planted")
            loss = loss_fn(self.model, batch) / self.parts
            loss.backward()
            total += float(loss.detach())
        self.losses.append(total)
        self.norms.append(float(torch.cat([p.grad.flatten() for p in self.model[3].parameters()]).norm()))
        nn.utils.clip_grad_norm_(self.model.parameters(), 1e-3)
        self.optimizer.step()
        if self.callback is not None:
            self.callback.end()
        self.optimizer.zero_grad()


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def read(callback, probe, name, site=""):
    frame = callback.scope.records()
    rows = frame.filter((frame["probe"] == probe) & (frame["name"] == name) & (frame["site"] == site))
    return rows["value"].to_list()


@pytest.mark.parametrize("parts", [1, 2])
def test_training_is_bit_identical_and_gradients_are_read_before_clipping(parts):
    without = Trainer(None, parts=parts).fit(4)
    callback = WatchedTraining(probes=["descent", "gradient_flow"], every=1)
    watched = Trainer(callback, parts=parts).fit(4)
    left = [fingerprint(model=each.model, optimizer=each.optimizer) for each in (without, watched)]
    assert differences(*left) == []
    assert read(callback, "gradient_flow", "norm", "3") == pytest.approx(watched.norms, rel=1e-5)
    assert read(callback, "descent", "loss") == pytest.approx(watched.losses, rel=1e-6)


def test_a_training_that_is_taken_up_again_counts_on():
    first = WatchedTraining(probes=["loss"], every=2)
    Trainer(first).fit(3)
    second = WatchedTraining(probes=["loss"], every=2)
    second.load_state_dict(first.state_dict())
    Trainer(second).fit(3)  # its own trainer says 0
    assert sorted(set(second.scope.records()["step"])) == [4]
    second.load_state_dict(WatchedTraining().state_dict())  # of a callback that has watched nothing
    Trainer(second).fit(3, start=7)
    assert sorted(set(second.scope.records()["step"])) == [8]


def test_options_of_the_callback_go_before_what_the_trainer_tells():
    callback = WatchedTraining(probes=["loss"], every=1, start=5)
    Trainer(callback).fit(1, start=2)
    assert sorted(set(callback.scope.records()["step"])) == [5]


def test_an_exception_leaves_nothing_on_the_model_once_closed():
    callback, removed = WatchedTraining(probes=["descent"], every=1), []
    trainer = Trainer(callback, fails_at=2)
    with pytest.raises(KeyError, match="planted"):
        trainer.fit(4)
    callback.until_closed(lambda: removed.append(True))
    callback.close()
    callback.close()
    assert removed == [True]
    assert callback.scope.index == 2  # the step that failed does not count
    for part in trainer.model.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


def test_a_second_training_leaves_the_first_and_before_a_training_nothing_happens():
    callback = WatchedTraining(probes=["loss"], every=1)
    for act in (callback.begin, callback.end, callback.close, lambda: callback.accumulate({}, None)):
        act()
    assert callback.scope is None
    broken = Trainer(callback, fails_at=1)
    with pytest.raises(KeyError):
        broken.fit(2)
    first = callback.scope
    Trainer(callback).fit(2)
    assert callback.scope is not first
    assert not first.inside_step
    assert not any(part._forward_hooks for part in broken.model.modules())


def test_batches_outside_a_step_are_passed_over():
    callback = WatchedTraining(probes=["loss"], every=1)
    trainer = Trainer(callback).fit(1)
    callback.accumulate(torch.zeros(1), None)  # an evaluation after the last step
    assert not callback.scope.inside_step
    assert callback.scope.index == len(trainer.losses)
