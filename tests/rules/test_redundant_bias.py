"""Biases before batch norm: which, how many numbers, and where they go."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from kit import repairs
from kit.findings import finding_of, is_quiet, repaired
from normscope import rules, surgery
from normscope.evidence import examples


@pytest.mark.parametrize("make", rules.get("NS122").SICK)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_the_running_mean_takes_the_bias_and_the_optimizer_forgets_it(make, kind):
    case = make()
    case.optimizer = kind(case.model.parameters(), lr=0.01)
    finding = finding_of(case, "NS122")
    modules = dict(case.model.named_modules())
    biases = [modules[place].bias for place in finding.places]
    assert finding.measured == sum(bias.numel() for bias in biases)
    assert finding.details["largest_bias"] == max(float(bias.detach().abs().max()) for bias in biases)
    assert finding.message.startswith(f"{len(biases)} layers add a bias")
    old = {id(norm): norm.running_mean.clone() for norm in examples.norms(case.model)}
    assert repaired(case, "NS122") == f"dropped {len(biases)} biases, each taken into the running mean after it"
    for norm, bias in zip(examples.norms(case.model), biases, strict=True):
        torch.testing.assert_close(norm.running_mean, old[id(norm)] - bias.detach(), rtol=0, atol=0)
    known = {id(p) for p in repairs.parameters_of(case.optimizer)}
    assert known == {id(p) for p in case.model.parameters()}


def test_only_the_layer_right_before_a_norm_is_named():
    def net(norm=nn.BatchNorm1d):
        parts = [nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5), norm(5), nn.Linear(5, 3, bias=False), norm(3)]
        return nn.Sequential(*parts, nn.Linear(3, 4))

    finding = finding_of(examples.healthy(net, shape=(12,), trained=0), "NS122")
    assert finding.places == ("2",)
    assert finding.measured == 5


class Read(nn.Module):
    """A layer whose output a norm reads, and a second reader, or none."""

    def __init__(self, second):
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)
        self.second = second

    def forward(self, x):
        x = self.linear(x)
        return self.head(self.norm(x) + x if self.second else self.norm(x))


@pytest.mark.parametrize("second", [False, True])
def test_a_second_reader_uses_the_bias(second):
    assert is_quiet(examples.healthy(partial(Read, second), shape=(12,), trained=0), "NS122") is second


@pytest.mark.parametrize("how", ["eval", "frozen"])
def test_norms_that_do_not_normalize_by_the_batch_use_the_bias(how):
    case = examples.healthy(examples.mlp, bias=True, trained=0)
    if how == "eval":
        case.model[4].eval()
    else:
        surgery.freeze(case.model, only=["4"])
    assert finding_of(case, "NS122").places == ("0", "6")


def test_a_bias_that_a_frozen_norm_uses_can_be_made_up_for_by_the_running_mean_alone():
    case = examples.healthy(examples.cnn, bias=True)
    norm, conv = case.model[1], case.model[0]
    x = case.loader[0][0]
    before = copy.deepcopy(case.model).eval()(x)
    with torch.no_grad():
        conv.bias.add_(1.0)
    assert not torch.allclose(copy.deepcopy(case.model).eval()(x), before)
    norm.running_mean.add_(1.0)
    torch.testing.assert_close(copy.deepcopy(case.model).eval()(x), before, rtol=1e-4, atol=1e-5)
