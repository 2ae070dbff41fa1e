"""Planted saturation and planted decay of gradients: shares, ratios, places, and the norms that the fix puts in."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from normscope import layers
from normscope.evidence import Case, examples


def saturating(share, act, *, size=50, shape=(12,)):
    """An activation of whose values a share is far out, before a layer."""
    rows = torch.arange(size) < size * share
    x = torch.where(rows.view(-1, *[1] * len(shape)), 9.0, 0.1).expand(size, *shape)
    head = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 4))
    model = nn.Sequential(act(), head).train()
    return Case(model, examples.mean_square, [x.contiguous()] * 4, torch.optim.SGD(model.parameters(), lr=0.01))


@pytest.mark.parametrize(("act", "shape"), [(nn.Tanh, (12,)), (nn.Sigmoid, (3, 5)), (nn.Tanh, (2, 3, 4))])
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_the_share_is_as_planted_and_a_norm_of_the_right_kind_is_put_in(act, shape, share):
    case = saturating(share, act, shape=shape)
    finding = finding_of(case, "NS127")
    assert finding.measured == pytest.approx(share)
    assert finding.bound == 0.5
    assert finding.places == ("0",)
    assert finding.message == f"1 activation is saturated: up to {share:.0%} of the outputs are near an end"
    assert repaired(case, "NS127") == "put a batch norm before 1 activation"
    norm = case.model[0][0]
    assert isinstance(norm, layers.BatchNorm2d if len(shape) == 3 else layers.BatchNorm1d)
    assert norm.num_features == shape[0]
    assert isinstance(case.model[0][1], act)
    assert {id(p) for group in case.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in case.model.parameters()
    }


def test_an_activation_that_makes_the_output_may_be_sure_of_it():
    case = saturating(0.9, nn.Tanh)
    case.model = nn.Sequential(nn.Linear(12, 4), nn.Tanh()).train()
    nn.init.constant_(case.model[0].weight, 5.0)
    case.optimizer = torch.optim.SGD(case.model.parameters(), lr=0.01)
    assert is_quiet(case, "NS127")


@pytest.mark.parametrize(("factor", "depth"), [(0.1, 9), (0.2, 12)])
def test_the_ratio_of_gradients_is_as_planted(factor, depth):
    finding = finding_of(examples.deep_with_scaled_gradients(factor, depth, norm=False), "NS127")
    assert finding.measured == pytest.approx(factor ** (depth - 4), rel=0.01)
    assert finding.details["gradient_ratio"] == finding.measured
    assert finding.message == f"gradients of the first layers are {finding.measured:.1e} times those of the last"
    assert not finding.fixable  # there is no activation to put a norm before
