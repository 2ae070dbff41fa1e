"""What torch's conversion drops: the difference by hand, for one, two and three dimensions."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet
from normscope import layers, rules
from normscope.evidence import Evidence, examples
from normscope.records import Severity

SHAPES = {nn.BatchNorm1d: (16, 3), nn.BatchNorm2d: (4, 3, 5, 2), nn.BatchNorm3d: (4, 3, 2, 3, 2)}


def raised(kind, offset, *, begun=True):
    """Make a subclass that adds a number, and a set-up of a norm of it, beside a norm that is synchronised or not."""

    class Raised(kind):
        def forward(self, input):
            return super().forward(input) + offset

    then = [nn.SyncBatchNorm(3)] if begun else []
    return examples.alone(Raised(3), [torch.randn(SHAPES[kind]) for _ in range(3)], then=then)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("offset", [0.5, -3.0])
def test_the_difference_is_what_the_subclass_adds(kind, offset):
    finding = finding_of(raised(kind, offset), "NS115")
    assert finding.measured == pytest.approx(abs(offset), rel=1e-5)
    assert finding.bound == 1e-4
    assert "1 norm of class Raised would" in finding.message
    assert finding.severity is Severity.ERROR
    assert not finding.fixable


@pytest.mark.parametrize("kind", SHAPES)
def test_a_subclass_that_adds_nothing_is_left_in_peace(kind):
    assert is_quiet(raised(kind, 0.0), "NS115")


@pytest.mark.parametrize("kind", SHAPES)
def test_nobody_converts_a_model_that_one_process_trains(kind, monkeypatch):
    assert is_quiet(raised(kind, 1.0, begun=False), "NS115")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 1)
    assert is_quiet(raised(kind, 1.0, begun=False), "NS115")


def test_local_statistics_in_several_processes_are_an_information(monkeypatch):
    case = raised(nn.BatchNorm2d, 1.0, begun=False)
    (rule,) = rules.chosen(["NS115"])
    evidence = Evidence(case)
    evidence.training  # noqa: B018
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    (finding,) = rule.examine(evidence)
    assert finding.severity is Severity.INFO
    assert finding.places == ("0",)


def test_only_norms_that_are_not_synchronised_are_named():
    class Activated(nn.SyncBatchNorm):
        def forward(self, input):
            return torch.tanh(super().forward(input))

    case = raised(nn.BatchNorm2d, 1.0)
    case.model.append(nn.BatchNorm2d(3)).append(layers.BatchNorm2d(3)).append(Activated(3))
    assert finding_of(case, "NS115").places == ("0",)
    case.model[0] = Activated(3)
    assert is_quiet(case, "NS115")


def test_a_norm_that_is_not_called_or_cannot_be_converted_is_not_judged():
    case = raised(nn.BatchNorm1d, 1.0)
    case.model.forward = lambda x: x * next(case.model.parameters()).sum()
    assert is_quiet(case, "NS115")
