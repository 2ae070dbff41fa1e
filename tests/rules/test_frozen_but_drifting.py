"""Norms without trained parameters whose statistics move: which, how often, and what a freeze stops."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking, evidence, rules, surgery
from normscope.evidence import examples
from normscope.records.numbers import counted


@pytest.mark.parametrize(("depth", "frozen"), [(1, [1]), (3, [4]), (3, [1, 7])])
def test_only_the_norms_without_a_trained_parameter_are_named_and_their_updates_counted(depth, frozen):
    case = examples.healthy(examples.mlp, depth=depth, trained=0)
    for index in frozen:
        case.model[index].requires_grad_(False)
    finding = finding_of(case, "NS101")
    assert finding.places == tuple(map(str, frozen))
    assert finding.measured == 4 * len(frozen)  # four steps, a call of each norm in each
    assert finding.message.startswith(counted(len(frozen), "norm trains no parameter", "norms train no parameter"))
    assert f"changed at {4 * len(frozen)} calls of 4 training steps" in finding.message
    assert finding.bound == 0
    assert repaired(case, "NS101") == f"froze {counted(len(frozen), 'norm')}"
    before = {name: buffer.clone() for name, buffer in case.model.named_buffers()}
    case.model.train()(case.loader[0][0])
    moved = {name for name, buffer in case.model.named_buffers() if not torch.equal(before[name], buffer)}
    assert {int(name.partition(".")[0]) for name in moved} == {1, 4, 7} & set(range(3 * depth)) - set(frozen)


def test_well_set_ups_that_are_frozen_by_surgery_are_sick_without_it():
    """They are near misses: thawed, each has the defect."""
    frozen = [case for make in rules.get("NS101").WELL if any(map(surgery.is_frozen, (case := make()).model.modules()))]
    assert frozen
    for case in frozen:
        surgery.unfreeze(case.model)
        assert finding_of(case, "NS101").places


def test_parameters_that_the_optimizer_does_not_have_are_not_trained():
    case = examples.healthy(examples.mlp, trained=0)
    case.optimizer = torch.optim.SGD([p for n, p in case.model.named_parameters() if not n.startswith("4.")], lr=0.1)
    assert finding_of(case, "NS101").places == ("4",)


def test_a_norm_without_parameters_is_judged_by_the_module_that_holds_it():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet, self.norm = nn.Linear(12, 5), nn.BatchNorm1d(5, affine=False)

        def forward(self, x):
            return self.norm(self.inlet(x))

    model = nn.Sequential(Held(), Held().requires_grad_(False), nn.Linear(5, 4))
    model[1].inlet = nn.Linear(5, 5).requires_grad_(False)
    case = evidence.Case(
        model.train(), examples.loss_fn, examples.data((12,)), torch.optim.SGD(model.parameters(), 0.1)
    )
    assert finding_of(case, "NS101").places == ("1.norm",)


def test_a_norm_that_is_not_called_does_not_drift():
    case = examples.healthy(examples.mlp, trained=0)
    case.model.unused = nn.BatchNorm1d(3).requires_grad_(False)
    case.model.forward = lambda x: nn.Sequential(*list(case.model)[:-1])(x)
    assert is_quiet(case, "NS101")


def test_a_model_that_is_frozen_as_a_whole_drifts_all_the_same():
    model = examples.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.requires_grad_(False)
    found = checking.check(evidence.Case(model, examples.loss_fn, examples.data((12,)), optimizer))
    assert [finding.code for finding in found] == ["NS101"]


def test_parameters_of_another_optimizer_that_the_step_reaches_are_trained():
    case = examples.healthy(examples.mlp, trained=0)
    case.optimizer = torch.optim.SGD(list(case.model.parameters())[:-5], lr=0.1)
    case.step = lambda model, batch: examples.loss_fn(model, batch).backward()
    assert finding_of(case, "NS101").places == ("7",)
    case.also = case.reach.also = (torch.optim.SGD(list(case.model.parameters())[-5:], lr=0.1),)
    assert is_quiet(case, "NS101")


def test_a_norm_without_parameters_in_a_model_without_any_is_not_judged():
    norm = nn.BatchNorm1d(12, affine=False)
    assert is_quiet(examples.alone(norm, [examples.two_values(3.0, 2.0)] * 4), "NS101")
