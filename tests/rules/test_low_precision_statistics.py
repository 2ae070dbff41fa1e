"""Buffers in half precision: spacing over momentum by hand, and that the repaired average moves on."""

import pytest
import torch

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking
from normscope.evidence import examples


def kept_in(dtype, momentum=0.1):
    norm = examples.batch_norm(3, momentum=momentum)
    norm.running_mean, norm.running_var = norm.running_mean.to(dtype), norm.running_var.to(dtype)
    return examples.alone(norm, [examples.two_values(1.0, 2.0, 8, 3)] * 3)


@pytest.mark.parametrize(("dtype", "spacing"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
@pytest.mark.parametrize("momentum", [0.1, 0.01])
def test_what_is_measured_is_the_spacing_over_momentum(dtype, spacing, momentum):
    finding = finding_of(kept_in(dtype, momentum), "NS118")
    assert finding.measured == pytest.approx(spacing / momentum)
    assert finding.bound == pytest.approx(2**-23 / momentum)
    assert finding.message == f"1 norm averages its running statistics in {str(dtype).removeprefix('torch.')}"
    assert finding.cost == f"an average stops moving within {spacing / momentum:.0%} of the data's"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_buffers_and_norms_that_do_not_average_are_left_in_peace(dtype):
    assert is_quiet(kept_in(dtype), "NS118")
    case = kept_in(torch.bfloat16)
    case.model.eval()
    assert is_quiet(case, "NS118")


def test_only_the_norms_that_average_in_half_precision_are_named():
    case = kept_in(torch.bfloat16)
    case.model.append(examples.batch_norm(3)).append(kept_in(torch.bfloat16).model[0])
    assert finding_of(case, "NS118").places == ("0", "2")


def test_the_repaired_average_arrives_where_the_other_one_is_stuck():
    norms = [examples.batch_norm(3, momentum=0.001).bfloat16() for _ in range(2)]
    case = examples.alone(norms[0], [examples.two_values(1.0, 2.0, 8, 3).bfloat16()] * 3)
    assert repaired(case, "NS118") == "converted 1 norm to keep statistics in float32"
    assert case.model[0].running_var.dtype is torch.float32
    for _ in range(300):
        case.model(case.loader[0])
        norms[1](case.loader[0])
    expected = 1 - 0.999**300
    assert float(case.model[0].running_mean[0]) == pytest.approx(expected, rel=1e-2)
    assert abs(float(norms[1].running_mean[0]) - expected) > 0.02


def test_of_a_checkpoint_nothing_is_concluded():
    found = checking.check_state(kept_in(torch.bfloat16).model.state_dict())
    assert "NS118" not in found.rules
