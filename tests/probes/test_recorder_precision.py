"""Passes that probes run themselves repeat the autocast of each module, wherever the loop or the loss turns it on."""

import io
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kit.traces import differences, fingerprint
from kit.training_loops import seed_all, values
from normscope import probes
from normscope.probes import Recorder

CODES = [probe.CODE for probe in probes.all() if probe.CODE != "output_moments"]  # it reads the root's own output
HALF = torch.bfloat16
SEEN = io.StringIO()  # what operations ran in; nothing that a probe would put back


def note(tensor):
    SEEN.write(f"{tensor.dtype}\n")


def noted():
    """Return what was noted since the last call."""
    found = SEEN.getvalue().split()
    SEEN.seek(0)
    SEEN.truncate()
    return found


def half(enabled=True):
    return torch.autocast("cpu", HALF, enabled=enabled)


class Net(nn.Module):
    """A backbone with a float32 island if asked for, and a head."""

    def __init__(self, island=False):
        super().__init__()
        torch.manual_seed(4)
        self.backbone = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2))
        self.inner, self.head = nn.Linear(16, 16), nn.Linear(16, 4)
        self.island = island

    def features(self, x):
        h = self.backbone(x)
        if self.island:
            with half(False):
                h = self.inner(h.float())
        else:
            h = self.inner(h)
        note(h)
        return h

    def forward(self, x):
        return self.head(self.features(x))

    def plain(self, h):
        """An operation of no module."""
        y = F.linear(h, self.head.weight)
        note(y)
        return y


def whole(model, batch):
    """As Lightning's training_step: the root's own forward is never called."""
    h = model.features(batch[0])
    y = model.head(h)
    note(y)
    return F.cross_entropy(y + model.plain(h), batch[1])


def by_itself(model, batch):
    """The loss turns autocast on, around a part only; what follows runs in float32."""
    with half():
        h = model.features(batch[0])
    y = model.head(h.float())
    note(y)
    return F.cross_entropy(y + model.plain(h.float()), batch[1])


def twice(model, batch):
    """One module at two precisions, which are the loop's."""
    x = batch[0]
    a = model.backbone(x)
    note(a)
    b = model.backbone(x)
    note(b)
    return F.cross_entropy(model.head((a + b).to(a.dtype)).float(), batch[1])


def loop_twice(model, batch):
    x = batch[0]
    with half():
        a = model.backbone(x)
    note(a)
    b = model.backbone(x)
    note(b)
    with half():
        y = model.head((a + b).to(a.dtype))
    return F.cross_entropy(y.float(), batch[1])


def split(model, batch):
    y = model.head(model.features(batch[0]).float())
    note(y)
    return F.cross_entropy(y, batch[1])


def loop_split(model, batch):
    with half():
        h = model.features(batch[0])
    y = model.head(h.float())
    note(y)
    return F.cross_entropy(y, batch[1])


def within(loss):
    def run(model, batch):
        with half():
            return loss(model, batch)

    return run


CASES = {
    "a trainer's, around all": (whole, within(whole)),
    "the loss's own, around a part": (by_itself, by_itself),
    "the loop's, around the backbone": (split, loop_split),
    "a module at two precisions": (twice, loop_twice),
    "none": (whole, whole),
}


def train(loss_fn, run, codes, island, steps=3, every=1):
    model = Net(island)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    stream = torch.Generator().manual_seed(1)
    scope = Recorder(model, loss_fn, optimizer, codes, every=every)
    seed_all()
    losses, seen = [], []
    for _ in range(steps):
        batch = torch.randn(16, 12, generator=stream), torch.randint(4, (16,), generator=stream)
        noted()
        with scope.step(batch):
            optimizer.zero_grad()
            loss = run(model, batch)
            loss.backward()
            optimizer.step()
            users = noted()
        seen.append((users, noted()))
        losses.append(loss.item())
    return fingerprint(model=model, optimizer=optimizer), losses, seen, values(scope.drain())


@pytest.mark.parametrize("island", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_each_operation_runs_in_the_precision_of_the_users_own_pass(case, island):
    loss_fn, run = CASES[case]
    _, losses, seen, found = train(loss_fn, run, ["landscape"], island)
    for step, (users, replayed) in enumerate(seen):
        assert replayed
        assert replayed == users * (len(replayed) // len(users))
        assert found["landscape", step, "", "loss"] == losses[step]  # to the bit
    assert {str(HALF)} & {kind for users, _ in seen for kind in users} or case == "none" or island


@pytest.mark.parametrize("case", CASES)
def test_no_trace_and_finite_values(case):
    loss_fn, run = CASES[case]
    left, losses, _, found = train(loss_fn, run, CODES, True, every=2)
    bare, expected, _, _ = train(loss_fn, run, [], True)
    assert losses == expected
    assert differences(left, bare) == []
    assert {probe for probe, *_ in found} >= {"landscape", "curvature", "gradient_flow"}


def test_the_precision_of_a_module_that_a_trainer_calls_inside_a_compiled_wrapper():
    """The trainer holds a compiled module and never calls itself."""

    class Trainer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))
            self.run = torch.compile(self.net, backend="eager")

    torch._dynamo.reset()
    trainer = Trainer()
    noted()

    def loss_fn(model, batch):
        y = model.run(batch[0])
        note(y)
        return F.cross_entropy(y.float(), batch[1])

    scope = Recorder(trainer, loss_fn, None, [probes.LandscapeAlongGradient(lr=0.1)], every=1)
    batch = torch.randn(16, 12), torch.randint(4, (16,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")  # torch, of its own inputs
        with scope.step(batch), half():
            loss = loss_fn(trainer, batch)
            loss.backward()
    assert set(noted()) == {str(HALF)}
    assert values(scope.drain())["landscape", 0, "", "loss"] == pytest.approx(loss.item(), rel=1e-2)
