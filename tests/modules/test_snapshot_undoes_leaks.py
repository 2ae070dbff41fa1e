"""A snapshot of a model sees every planted leak and undoes it; an oracle that is not the snapshot agrees."""

import pytest

from kit import varied_networks as nets
from kit.planted_leaks import LEAKS, set_grad
from kit.traces import differences, fingerprint
from normscope.modules.state import Snapshot


@pytest.mark.parametrize("leak", LEAKS)
def test_a_snapshot_sees_and_undoes_a_leak(leak):
    model, (batch,) = nets.make("mlp"), nets.batches("mlp", 1)
    nets.loss_fn(model, batch).backward()
    gradient = model[0].weight.grad
    before, untouched = Snapshot(model), fingerprint(model=model)
    LEAKS[leak](model)
    assert before.differences() != []
    assert differences(fingerprint(model=model), untouched) != []
    before.restore()
    assert before.differences() == []
    assert differences(fingerprint(model=model), untouched) == []
    assert model[0].weight.grad is gradient


def test_a_snapshot_gives_back_absent_gradients_and_leaves_a_kept_graph_valid():
    model, (batch,) = nets.make("mlp"), nets.batches("mlp", 1)
    loss = nets.loss_fn(model, batch)
    before = Snapshot(model)
    set_grad(model)
    before.restore()
    assert model[0].weight.grad is None
    loss.backward()
