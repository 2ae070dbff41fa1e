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


class Functions(nn.Module):
    """Layers whose activation is a function in the model's own code."""

    def __init__(self, act, scale, *, gate=False):
        super().__init__()
        self.act, self.gate = act, gate
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.head = nn.Linear(12, 4)
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=scale)

    def forward(self, x):
        for layer in self.layers:
            y = self.act(layer(x))
            x = x * y if self.gate else y
        return self.head(x)


def functions(act, scale, **options):
    return examples.healthy(lambda: Functions(act, scale, **options), trained=0, shape=(12,))


@pytest.mark.parametrize("act", [torch.tanh, torch.sigmoid, torch.Tensor.tanh, nn.functional.sigmoid])
def test_functions_saturate_as_modules_do_and_are_named_by_their_layers(act):
    finding = finding_of(functions(act, 20.0), "NS127")
    assert set(finding.places) <= {"layers.0", "layers.1", "layers.2"}
    assert finding.measured > 0.5
    assert not finding.fixable


@pytest.mark.parametrize(("scale", "gate"), [(0.3, False), (20.0, True)])
def test_functions_that_do_not_saturate_and_gates_are_left_in_peace(scale, gate):
    assert is_quiet(functions(torch.sigmoid, scale, gate=gate), "NS127")


@pytest.mark.parametrize("depth", [6, 10])
def test_outputs_fade_where_gradients_of_weights_are_all_alike(depth):
    """Orthogonal layers times 0.1: the output of layer l is 0.1^l, its gradient 0.1^(L - l), their product the same."""
    case = examples.deep_with_scaled_gradients(1.0, depth, norm=False)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.mul_(0.1)
    finding = finding_of(case, "NS127")
    assert finding.measured == pytest.approx(0.1 ** (depth - 2), rel=0.1)


def test_a_last_layer_that_starts_at_zero_is_no_vanishing():
    model = examples.seeded(lambda: nn.Sequential(*[nn.Linear(12, 12) for _ in range(6)], nn.Linear(12, 4)))
    nn.init.zeros_(model[6].weight)
    for lr in (0.0, 0.01):
        case = Case(model, examples.loss_fn, examples.data((12,)), torch.optim.SGD(model.parameters(), lr=lr))
        assert is_quiet(case, "NS127")
