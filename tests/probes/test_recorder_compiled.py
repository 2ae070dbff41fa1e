"""Compiled models are read by an eager pass beside them; models on an accelerator as any other."""

import warnings

import pytest
import torch
from torch import nn

from kit import varied_networks as nets
from kit.traces import differences, fingerprint
from kit.training_loops import COSTLY, STREAMING, seed_all, values
from normscope import probes
from normscope.probes import ProbeWarning, Recorder

CODES = [probe.CODE for probe in probes.all()]


class Block(nn.Module):
    """torch compiles in place only what is not its own container."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return self.inside(x)


def compiled(how, backend):
    torch._dynamo.reset()
    layers = nets.make("mlp")
    model = Block(nn.Sequential(*layers[:3], Block(layers[3]), *layers[4:]))
    if how == "whole":
        return model, torch.compile(model, backend=backend)
    if how is not None:
        (model if how == "in place" else model.inside[3]).compile(backend=backend)
    return model, model


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("how", ["whole", "in place", "one layer"])
def test_compiled_models_are_read_and_left_compiled(how, backend):
    def train(codes, how=how):
        model, run = compiled(how, backend)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        seed_all()
        scope = Recorder(run, nets.loss_fn, optimizer, codes, every=2)
        torch._dynamo.utils.counters.clear()
        for batch in nets.batches("mlp", 4):
            with scope.step(batch):
                optimizer.zero_grad()
                nets.loss_fn(run, batch).backward()
                optimizer.step()
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        return fingerprint(state=model.state_dict(), optimizer=optimizer), graphs, scope.drain()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")  # torch, of its own inputs
        bare, graphs, _ = train([])
        result, again, records = train(CODES)
    assert differences(result, bare) == []
    assert graphs == again > 0  # nothing was compiled anew
    expected = values(train(CODES, how=None)[2])
    found = values(records)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if key[0] in (*STREAMING, *COSTLY):
            assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


def test_a_compiled_models_loss_that_fails_switches_its_readers_off():
    _, run = compiled("whole", "eager")
    scope = Recorder(run, lambda m, b: 1 / 0, None, STREAMING, every=1)
    (batch,) = nets.batches("mlp", 1)
    with warnings.catch_warnings(record=True) as caught, scope.step(batch):
        warnings.simplefilter("always")
        nets.loss_fn(run, batch).backward()
    (told,) = [str(warning.message) for warning in caught if warning.category is ProbeWarning]
    assert told.startswith("probes 'gradient_flow', 'activation_distribution' failed")  # one cause, told once


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("net", ["dropout", "residual", "recurrent", "transformer"])
def test_no_trace_and_the_same_values_on_cuda(net):
    def train(device, codes):
        model = nets.make(net).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        seed_all()
        scope = Recorder(model, nets.loss_fn, optimizer, codes, every=3)
        for batch in nets.batches(net, 7):
            batch = tuple(part.to(device) for part in batch)
            with scope.step(batch):
                optimizer.zero_grad()
                nets.loss_fn(model, batch).backward()
                optimizer.step()
        return fingerprint(model=model, optimizer=optimizer), scope

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        result, scope = train("cuda", CODES)
        assert differences(result, train("cuda", [])[0]) == []
        assert {record.probe for record in scope.drain()} == set(CODES)
    finally:
        torch.use_deterministic_algorithms(False)
