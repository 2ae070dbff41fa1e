"""Second models: which modules are companions of which parts, and what statistics taken anew gain, by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from normscope.evidence import Case, Evidence, Gain, examples, gain_of, with_companion
from normscope.modules.state import Snapshot


def test_the_gain_is_the_mean_rise_and_its_error_that_of_pairs():
    gain = Gain([3.0, 5.0, 4.0], [1.0, 2.0, 3.0], {})
    assert gain.loss == pytest.approx(2.0)  # rises 2, 3, 1
    assert gain.error == pytest.approx(1.0 / math.sqrt(3))
    assert gain.excess == pytest.approx(2.0)
    assert gain.is_large  # 2 is more than 3 / sqrt(3) = 1.73
    assert not Gain([3.0, 6.0, 3.0], [1.0, 2.0, 3.0], {}).is_large  # rises 2, 4, 0: error 2 / sqrt(3)
    assert not Gain([3.0], [1.0], {}).is_large
    assert Gain([-1.0, -1.0], [-2.0, -2.0], {}).excess == pytest.approx(1.5)  # of the size of a negative loss


def reached(companion, **options):
    case = examples.healthy(examples.mlp, trained=0)
    return Evidence(with_companion(case, companion=companion, **options))


@pytest.mark.parametrize("wrap", [lambda net: net, torch.optim.swa_utils.AveragedModel])
def test_a_module_of_the_same_names_and_shapes_is_a_companion_also_in_a_wrapper(wrap):
    (found,) = reached(wrap(examples.mlp())).companions
    assert found.part == ""
    assert found.name == ("step.companion" if wrap(nn.Linear(1, 1)).__class__ is nn.Linear else "step.companion.module")


def test_other_shapes_and_networks_without_norms_are_no_companions():
    assert reached(examples.mlp(width=17)).companions == []
    assert reached(examples.mlp(lambda width: nn.Identity())).companions == []


def test_a_peer_with_an_optimizer_of_its_own_is_no_companion():
    peer = examples.mlp()
    own = torch.optim.SGD(peer.parameters(), 0.1)
    assert reached(peer, follow=lambda *_: None).companions
    evidence = reached(peer)
    evidence.case.also = evidence.case.reach.also = (own,)
    assert evidence.companions == []


def test_a_companion_is_that_of_the_nearest_of_parts_that_are_alike():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = examples.seeded(examples.mlp, 1), examples.seeded(examples.mlp, 2)

        def forward(self, x):
            return self.a(x) + self.b(x)

    model = Twins().train()
    case = Case(model, examples.loss_fn, examples.data((12,)), torch.optim.SGD(model.parameters(), 0.1))
    for part in ("a", "b"):
        companion = copy.deepcopy(getattr(model, part)).requires_grad_(False)
        (found,) = Evidence(with_companion(case, companion=companion)).companions
        assert found.part == part


def test_what_a_companion_gains_leaves_no_trace():
    evidence = reached(examples.seeded(examples.mlp, 3).requires_grad_(False))
    (companion,) = evidence.companions
    before = Snapshot(evidence.case.model, companion.module)
    gain = gain_of(evidence.case, companion, 4)
    assert before.differences() == []
    assert len(gain.own) == len(gain.anew) == 4
    assert set(gain.shift) == {"1", "4", "7"}


def test_what_the_steps_move_is_known_by_its_parameters():
    still = reached(frozen := examples.mlp().requires_grad_(False)).training.moved
    moved = reached(
        target := examples.mlp().requires_grad_(False), follow=lambda target, _: target[0].weight.data.mul_(0.9)
    ).training.moved
    assert not {id(parameter) for parameter in frozen.parameters()} & still
    assert {id(parameter) for parameter in target.parameters()} & moved == {id(target[0].weight)}


@pytest.mark.parametrize(
    ("own", "anew", "matters", "is_large"),
    [
        ([1.5, 1.5, 1.5], [1.0, 1.0, 1.0], True, True),
        ([1.05, 1.05, 1.05], [1.0, 1.0, 1.0], True, False),  # less than a lag
        ([1.005, 1.005, 1.005], [1.0, 1.0, 1.0], False, False),  # less than 1 %
        ([2.5, 0.5, 1.5], [1.0, 1.0, 1.0], False, False),  # rises of 1.5, -.5, .5: a mean of .5 with an error of .58
        ([1.5], [1.0], True, False),  # one batch shows no noise
    ],
)
def test_a_gain_counts_beyond_its_noise(own, anew, matters, is_large):
    gain = Gain(own, anew, {})
    assert (gain.matters, gain.is_large) == (matters, is_large)
