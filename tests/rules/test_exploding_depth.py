"""Planted growth of gradients: what is measured, and what the fix sets."""

import math
from functools import partial

import pytest
import torch

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking
from normscope.evidence import examples


@pytest.mark.parametrize(("factor", "depth"), [(1.3, 40), (1.6, 20)])
def test_growth_is_as_planted(factor, depth):
    finding = finding_of(examples.deep_with_scaled_gradients(factor, depth), "NS126")
    assert finding.measured == finding.details["growth"] == pytest.approx(factor, rel=0.03)
    assert finding.details["layers"] == depth
    assert math.log(finding.details["ratio"]) == pytest.approx(math.log(factor) * (depth - 4), rel=0.1)
    assert finding.bound == 1.12
    assert finding.message.startswith(f"over {depth} layers gradients grow by ")
    assert f"those of the first are {finding.details['ratio']:.3g} times those of the last" in finding.message
    assert len(finding.places) == depth - 1


def test_a_short_network_is_judged_by_its_ends():
    finding = finding_of(examples.deep_with_scaled_gradients(6.0, 8), "NS126")
    assert finding.quantity == "gradient of the first layers over that of the last"
    assert finding.measured == finding.details["ratio"] == pytest.approx(6.0**4, rel=0.2)
    assert finding.bound == 1000.0


def scaled(gain, depth):
    """Orthogonal layers without norms, times a gain: outputs grow by it, and gradients at them toward the input."""
    case = examples.deep_with_scaled_gradients(1.0, depth, norm=False)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.mul_(gain)
    return case


@pytest.mark.parametrize(("gain", "depth"), [(1.6, 20), (1.3, 30)])
def test_without_norms_the_growth_of_outputs_is_as_planted(gain, depth):
    finding = finding_of(scaled(gain, depth), "NS126")
    assert finding.measured == pytest.approx(gain, rel=0.03)
    assert finding.places == tuple(str(2 * index) for index in range(depth))
    assert finding.message.startswith(f"over {depth} layers outputs, and gradients toward the input, grow by ")
    assert finding.details["ratio"] == pytest.approx(gain ** (depth - 4), rel=0.1)


def test_a_short_network_without_norms_is_judged_by_its_growth():
    finding = finding_of(scaled(11.0, 6), "NS126")
    assert finding.measured == finding.details["ratio"] == pytest.approx(11.0**4, rel=0.2)
    assert is_quiet(scaled(5.0, 6), "NS126")  # 5^4 = 625


def test_gradients_that_grow_without_outputs_or_outputs_without_gradients_are_another_matter():
    assert is_quiet(examples.deep_with_scaled_gradients(1 / 1.6, 30, norm=False), "NS126")
    other = scaled(1.6, 20)
    for module in other.model:
        if isinstance(module, examples.ScaledGradient):
            module.factor = 1 / 1.6  # gradients at outputs keep their size
    assert is_quiet(other, "NS126")


def test_without_norms_the_fix_gives_every_layer_an_output_of_size_one():
    case = scaled(1.6, 20)
    assert repaired(case, "NS126") == "divided weights and shifts of 20 layers by the size of what they put out"
    x = case.loader[0]
    for module in case.model:
        x = module(x)
        if isinstance(module, torch.nn.Linear):
            assert float(x.detach().square().mean().sqrt()) == pytest.approx(1.0, rel=1e-4)
    assert is_quiet(case, "NS126")


def test_the_fix_starts_the_shifts_at_two_and_only_of_norms_as_made():
    case = examples.deep_with_scaled_gradients(1.5, 14)
    assert repaired(case, "NS126") == "set the shift of 13 norms to 2"
    norms = examples.norms(case.model)
    assert all(norm.bias.eq(2).all() and norm.weight.eq(1).all() for norm in norms)
    other = examples.deep_with_scaled_gradients(1.5, 14)
    with torch.no_grad():
        examples.norms(other.model)[3].weight[0] = 1.5
    assert not finding_of(other, "NS126").fixable


def test_many_layers_are_one_finding():
    deep = partial(examples.healthy, examples.mlp, trained=0, depth=30, bias=True)
    found = checking.check(deep(), ["NS122", "NS126"], gap=False)
    assert [(finding.code, len(finding.places)) for finding in found] == [("NS126", 30), ("NS122", 30)]
