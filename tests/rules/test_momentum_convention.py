"""Momentum at, above and below the bound, several values in one model, and what it is set to."""

import pytest

from kit.findings import is_quiet
from normscope import checking
from normscope.evidence import examples


def model_with(*momenta):
    norms = [examples.batch_norm(3, momentum=momentum) for momentum in momenta]
    return examples.alone(norms[0], [examples.two_values(1.0, 2.0, 8, 3)] * 3, then=norms[1:])


def test_each_value_is_a_finding_with_its_own_norms_and_its_own_repair():
    case = model_with(0.99, 0.1, 0.0, 0.99, 0.5, None, 0.49, 1.0)
    found = checking.check(case, ["NS108"], gap=False)
    assert {finding.measured: finding.places for finding in found} == {
        0.99: ("0", "3"), 0.0: ("2",), 0.5: ("4",), 1.0: ("7",),
    }  # fmt: skip
    by_value = {finding.measured: finding for finding in found}
    assert by_value[0.99].message == "2 norms have momentum 0.99, which in torch is the weight of the new batch"
    assert by_value[0.99].cost == "the running statistics are 99% those of the last batch"
    assert by_value[0.99].fix == "set momentum to 0.01, then recalibrate"
    assert by_value[0.0].message.endswith(": the running statistics never change")
    assert by_value[0.0].cost == "evaluation normalizes by initial values"
    assert by_value[0.0].fix.startswith("set momentum to 0.1,")
    assert all(finding.bound == 0.5 for finding in found)
    done = [made.done for made in checking.fix(case, found, unsafe=True)]
    assert "set momentum to 0.01 in 2 norms; the running statistics are as they were: recalibrate them" in done
    assert [norm.momentum for norm in case.model] == [0.01, 0.1, 0.1, 0.01, 0.5, None, 0.49, 0.0]


@pytest.mark.parametrize("change", ["eval", "no statistics"])
def test_norms_that_keep_no_average_are_passed_over(change):
    case = model_with(0.99)
    if change == "eval":
        case.model.eval()
    else:
        case.model[0] = examples.batch_norm(3, momentum=0.1)
        case.model[0].running_mean = case.model[0].running_var = None
        case.model[0].track_running_stats = False
        case.model[0].momentum = 0.99
    assert is_quiet(case, "NS108")
