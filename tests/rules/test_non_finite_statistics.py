"""Buffers that are no statistics: which, how many channels, and the batch that made them so."""

import math

import pytest
import torch

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking, rules
from normscope.evidence import examples


@pytest.mark.parametrize(
    ("mean", "variance", "channels"),
    [
        ([0.0, math.nan, 0.0], [1.0, 1.0, 1.0], 1),
        ([math.inf, 0.0, -1.1e30], [1.0, -1e-9, 1.0], 3),
        ([-math.inf, 0.0, 0.0], [math.nan, 1.0, 2e30], 2),
        ([-0.9e30, 0.0, 0.9e30], [0.0, 0.9e30, 1.0], 0),
    ],
)
def test_every_impossible_channel_is_counted_once(mean, variance, channels):
    case = examples.alone(examples.batch_norm(3), [examples.two_values(1.0, 2.0, 32, 3)] * 3)
    case.model.extra = examples.batch_norm(2)
    case.model.forward = lambda x: case.model[0](x)
    case.model[0].running_mean.copy_(torch.tensor(mean))
    case.model[0].running_var.copy_(torch.tensor(variance))
    state = checking.check_state(case.model.state_dict(), ["NS103"])
    if not channels:
        assert is_quiet(case, "NS103")
        assert not state
        return
    finding = finding_of(case, "NS103")
    assert finding.measured == channels
    assert f"in {channels} channels of 1 of 2 norms" in finding.message
    assert state[0].message == finding.message
    assert finding.fixable
    assert not state[0].fixable
    assert repaired(case, "NS103") == "reset and recalibrated 1 norm on the training data"
    torch.testing.assert_close(case.model[0].running_mean, torch.ones(3), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(case.model[0].running_var, torch.full((3,), 4.0 * 96 / 95), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [0, 2])
def test_the_batch_that_is_not_finite_is_named(step):
    case = examples.healthy(examples.mlp, trained=0)
    case.loader[step] = (
        torch.where(torch.arange(32)[:, None] == 3, torch.nan, case.loader[step][0]),
        torch.zeros(32).long(),
    )
    finding = finding_of(case, "NS103")
    assert finding.message.startswith(f"training batch {step} makes the running statistics of 3 norms non-finite")
    assert finding.message.endswith("its input batch is not finite")
    assert finding.places == ("1", "4", "7")
    assert not finding.fixable


def test_the_layer_in_which_a_value_stops_being_finite_is_named():
    class Overflow(torch.nn.Module):
        def forward(self, x):
            return torch.where(x > 0, x * torch.inf, x)

    case = examples.healthy(examples.mlp, trained=0)
    case.model[2] = Overflow()
    finding = finding_of(case, "NS103")
    assert finding.places == ("4", "7")
    assert "batch 0 makes the running statistics of 2 norms non-finite: first in '2'" in finding.message


@pytest.mark.parametrize("make", rules.get("NS103").SICK)
def test_repaired_statistics_are_not_called_young(make):
    case = make()
    repaired(case, "NS103")
    assert [finding.code for finding in checking.check(case, ["NS103", "NS109"], gap=False)] == []
