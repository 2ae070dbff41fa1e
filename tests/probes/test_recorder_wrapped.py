"""Optimizers in a trainer's wrappers or of somebody's own, and models that are saved and copied within a step."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn

from kit import varied_networks as nets
from kit.traces import differences, fingerprint
from kit.training_loops import seed_all, values
from modules.test_wrapped import WRAPPERS, Own
from normscope import probes
from normscope._errors import UsageError
from normscope.probes import ProbeWarning, Recorder

CODES = [probe.CODE for probe in probes.all()]


def train(make, codes, wrap=lambda optimizer: optimizer, steps=3):
    model = nets.make("mlp")
    optimizer = make(model.parameters())
    handed = wrap(optimizer)
    seed_all()
    scope = Recorder(model, nets.loss_fn, handed, codes, every=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ProbeWarning)
        for batch in nets.batches("mlp", steps):
            with scope.step(batch):
                handed.zero_grad()
                nets.loss_fn(model, batch).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                handed.step()
    return fingerprint(model=model, optimizer=optimizer), values(scope.drain())


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


@pytest.mark.parametrize("how", WRAPPERS)
def test_a_wrapped_optimizer_is_read_as_the_one_inside(how):
    left, found = train(sgd, CODES, WRAPPERS[how])
    bare, _ = train(sgd, [])
    _, expected = train(sgd, CODES)
    assert differences(left, bare) == []
    assert found == pytest.approx(expected, nan_ok=True)


def test_an_optimizer_without_hooks_is_read_as_the_step_ends():
    left, found = train(Own, ["gradient_flow", "update_ratio"])
    assert differences(left, train(Own, [])[0]) == []
    _, expected = train(lambda parameters: torch.optim.SGD(parameters, 0.1), ["gradient_flow", "update_ratio"])
    assert found == pytest.approx(expected, rel=1e-4)
    assert any(name == "norm_at_update" for *_, name in found)


@pytest.mark.parametrize("way", ["save", "copy"])
def test_a_model_is_saved_and_copied_within_a_due_step_and_the_copy_has_no_trace(way):
    def remake(model):
        if way == "copy":
            return copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    def run(codes):
        model = nets.make("mlp")
        optimizer = sgd(model.parameters())
        seed_all()
        scope = Recorder(model, nets.loss_fn, optimizer, codes, every=1)
        copies = []
        for batch in nets.batches("mlp", 2):
            with scope.step(batch):
                copies.append(remake(model))
                optimizer.zero_grad()
                loss = nets.loss_fn(model, batch)
                copies.append(remake(model))
                loss.backward()
                optimizer.step()
                copies.append(remake(model))
            copies[-1](batch[0])  # a copy is a model like any other
        return fingerprint(model=model, optimizer=optimizer), copies

    (left, copies), (bare, expected) = run(CODES), run([])
    assert differences(left, bare) == []
    for one, other in zip(copies, expected, strict=True):
        assert differences(fingerprint(state=one.state_dict()), fingerprint(state=other.state_dict())) == []
        if way == "copy":
            assert differences(fingerprint(model=one), fingerprint(model=other)) == []


def test_a_traced_model_is_refused_in_a_line():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(nets.make("mlp"), next(iter(nets.batches("mlp", 1)))[0])
    with pytest.raises(UsageError, match="traced or scripted") as caught:
        Recorder(traced, nets.loss_fn)
    assert "\n" not in str(caught.value)
