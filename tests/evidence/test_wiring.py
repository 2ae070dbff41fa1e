"""What reads what in public networks, by hand; and nothing is left behind."""

import pytest
import torch
from torch import nn

from kit.public_networks import network
from normscope.evidence import Case, Evidence, answers, examples, innermost
from normscope.modules.state import Snapshot


def evidence_of(name):
    model, x = network(name)
    model.train()
    return Evidence(Case(model, examples.mean_square, [x] * 4, torch.optim.SGD(model.parameters(), lr=0.01)))


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("resnet", {"bn1": {"layer", "sum"}, "layer1.0.bn1": {"layer"}, "layer1.0.bn2": {"sum"}}),
        ("bottleneck", {"layer1.0.bn3": {"sum"}, "layer1.0.downsample.1": {"sum"}, "layer1.0.bn2": {"layer"}}),
        ("mobilenet", {"1.conv.7": {"sum"}, "2.conv.7": {"other"}}),
        ("torch post-norm", {"encoder.layers.0.norm1": {"layer", "sum"}, "encoder.layers.1.norm2": {"norm"}}),
        ("pre-norm", {"blocks.0.norm1": {"layer"}, "norm": {"other"}}),
    ],
)
def test_what_reads_a_norm(name, readers):
    found = evidence_of(name).wiring.readers
    assert {path: found[path] for path in readers} == readers


def test_gates_and_the_units_of_each_axis():
    gates = {(act.kind, act.is_gate) for act in evidence_of("lstm cell").wiring.activations.values()}
    assert gates == {("sigmoid", True), ("tanh", True)}
    (first, _) = evidence_of("torch pre-norm").wiring.activations.values()
    assert (first.place, len(first.positive), first.values, first.samples) == ("encoder.layers.0.linear1", 16, 224, 32)
    relu = evidence_of("unet").wiring.activations["inc.2", 0]
    assert (relu.is_module, len(relu.positive), relu.values) == (True, 6, 4 * 8 * 256)
    assert evidence_of("lstm").wiring.sequences == {7}


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "llama", "torch post-norm", "tcn", "timm"])
def test_looking_leaves_nothing_behind(name):
    evidence = evidence_of(name)
    before, stream = Snapshot(evidence.case.model), torch.get_rng_state()
    assert evidence.wiring.sizes
    assert answers(evidence.case)
    assert before.differences() == []
    assert torch.equal(stream, torch.get_rng_state())


def test_sizes_are_root_mean_squares_in_the_order_of_use():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    sizes = Evidence(Case(model, examples.mean_square, [x])).wiring.sizes
    assert list(sizes) == ["0", "2"]
    assert sizes["0"] == pytest.approx(float(model[0](x).detach().square().mean().sqrt()), rel=1e-6)


def test_sites_that_hold_others_are_no_layers():
    assert innermost({"": 1.0, "a": 2.0, "a.b": 3.0, "ab": 4.0}) == {"a.b": 3.0, "ab": 4.0}
    assert innermost({"": 1.0}) == {"": 1.0}
