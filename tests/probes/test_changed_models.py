"""What a scope keeps from one step to the next never shows: it reads a changed model as a new scope does."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from normscope import probes
from normscope.modules.hooks import HOOKS
from normscope.probes import AbstractProbe, Recorder

# A probe's own state: the start of the training, and which units were ever active.
STATE = {"weight_drift", "bias_drift", "dead_share"}


class Failing(AbstractProbe):
    """Fails at its second reading."""

    CODE = "failing"
    seen = 0

    @classmethod
    def page(cls):
        return {}

    def read(self, step):
        self.seen += 1
        if self.seen == 2:
            raise ValueError("planted")
        yield self.record(step, "", "seen", self.seen)


def network(shape):
    torch.manual_seed(0)
    if shape == "small":
        return nn.Sequential(
            nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 9), nn.BatchNorm1d(9), nn.Tanh()
        )
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 9, 3), nn.BatchNorm2d(9), nn.ReLU()
    )


def append(model):
    model.append(nn.Identity() if model[0].weight.ndim == 4 else nn.Sequential(nn.Linear(9, 9), nn.BatchNorm1d(9)))


def replace(model):
    model[1] = nn.Identity()
    model[2] = nn.Tanh()


def freeze(model):
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)


def evaluate(model):
    model[4].eval()


def bare(model):
    model[4].register_parameter("weight", None)


def new_weight(model):
    model[3].weight = nn.Parameter(model[3].weight.detach() * 2)


def hook(model):
    model[1].register_forward_hook(lambda module, inputs, output: 2 * output)


def train(model, optimizer, x):
    optimizer.zero_grad()
    (model(x) - 1).square().mean().backward()
    optimizer.step()


CHANGES = [append, replace, freeze, evaluate, bare, new_weight, hook]


def own_hooks(model):
    return {(name, kind): len(getattr(module, kind)) for name, module in model.named_modules() for kind in HOOKS}


@pytest.mark.parametrize("shape", ["small", "large"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_is_read_as_by_a_new_scope(change, shape):
    model, streaming = (
        network(shape),
        [
            probe
            for probe in probes.all()
            if probe.STREAMING and probe.CODE != "residual_stream"  # there are no tokens
        ],
    )
    kept = Recorder(model, None, None, [*(kind() for kind in streaming), Failing()], every=1)
    beside = Recorder(model, None, None, "gradient_flow", every=1)
    for index in range(4):
        if index == 2:
            change(model)
        before, twin = own_hooks(model), copy.deepcopy(model)
        x = torch.randn(*((32, 6) if shape == "small" else (16, 3, 16, 16)))
        optimizer, fresh_optimizer = (torch.optim.SGD(each.parameters(), 0.1) for each in (model, twin))
        kept.optimizers[:] = beside.optimizers[:] = [optimizer]
        told = pytest.warns(probes.ProbeWarning, match="planted") if index == 1 else nullcontext()
        with told, kept.step(x), beside.step(x):
            train(model, optimizer, x)
        assert own_hooks(model) == before
        fresh = Recorder(twin, None, fresh_optimizer, [kind() for kind in streaming], every=1, start=index)
        with fresh.step(x):
            train(twin, fresh_optimizer, x)
        found, also, expected = (
            {(r.probe, r.site, r.name): r.value for r in one.drain()} for one in (kept, beside, fresh)
        )
        assert also == {key: value for key, value in expected.items() if key[0] == "gradient_flow"}
        assert (("failing", "", "seen") in found) == (index == 0)
        found.pop(("failing", "", "seen"), None)
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert key[2] in STATE or str(found[key]) == str(value), key
    assert {probe for probe, _, _ in expected} >= {kind.CODE for kind in streaming} - {"scale_invariance"}
