"""Folds with planted errors: their size beside the largest output, and which norms are at fault."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking, rules, surgery
from normscope.evidence import Case, examples, quiet
from normscope.records.numbers import counted


def folded(errors, widths=(12, 8, 5)):
    """Layers with norms, and a copy in which each norm is folded, its weights off by a share of their own."""
    parts = []
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        linear = examples.seeded(lambda inputs=inputs, outputs=outputs: nn.Linear(inputs, outputs), index)
        parts += [linear, examples.batch_norm(outputs, mean=0.2, variance=1.5)]
    model, other = nn.Sequential(*parts).train(), nn.Sequential(*copy.deepcopy(parts))
    with torch.no_grad():
        for index, error in enumerate(errors):
            linear, norm = other[2 * index], other[2 * index + 1]
            scale = (1 + error) / (norm.running_var + norm.eps).sqrt()
            linear.bias.sub_(norm.running_mean).mul_(scale)
            linear.weight.mul_(scale[:, None])
            other[2 * index + 1] = nn.Identity()
    return Case(model, examples.mean_square, [examples.two_values(1.0, 2.0)] * 3, exported=other)


@pytest.mark.parametrize(("errors", "guilty"), [((0.0, 0.02), ["3"]), ((0.01, 0.0), ["1"]), ((0.1, -0.2), ["1", "3"])])
def test_error_and_guilt_are_as_planted(errors, guilty):
    case = folded(errors)
    x = case.loader[0]
    expected, got = copy.deepcopy(case.model).eval()(x).detach(), case.exported(x).detach()
    finding = finding_of(case, "NS119")
    assert finding.measured == pytest.approx(float((expected - got).abs().max() / expected.abs().max()), rel=1e-3)
    assert list(finding.places) == guilty
    assert f"off from the model by {finding.measured:.2g} of the largest output;" in finding.message
    assert finding.message.endswith(f"2 norms are folded in it, of which {counted(len(guilty), 'is', 'are')} at fault")
    repaired(case, "NS119")
    torch.testing.assert_close(case.exported(x), expected, rtol=1e-4, atol=1e-5)


def test_a_right_fold_and_half_precision_are_left_in_peace():
    assert is_quiet(folded((0.0, 0.0)), "NS119")
    case = folded((0.1, 0.1))
    case.exported = case.exported.bfloat16()
    assert is_quiet(case, "NS119")


class Activated(nn.BatchNorm1d):
    """A norm with the activation after it, as other libraries have."""

    def forward(self, x):
        return super().forward(x).relu()


@torch.no_grad()
def deployed_otherwise(how):
    """A model and what is deployed of it, with all its norms in it."""
    case = folded((0.0, 0.0))
    case.exported = copy.deepcopy(case.model).eval()
    if how == "older weights":
        case.exported[0].weight.mul_(2)
    elif how == "older statistics":
        case.exported[1].running_mean.add_(1)
    elif how == "class":  # as a conversion does that makes a norm of the base class
        activated = Activated(8).train()
        activated.load_state_dict(case.model[1].state_dict())
        case.model[1] = activated
    elif how == "program":
        case.exported = torch.export.export(case.exported, (case.loader[0],))
        case.model[3].running_mean.sub_(1)
    return case


@pytest.mark.parametrize(
    ("how", "places"),
    [("older weights", ("",)), ("older statistics", ("1",)), ("class", ("1",)), ("program", ("3",))],
)
def test_what_is_deployed_without_a_fold_and_is_another_network_is_found(how, places):
    case = deployed_otherwise(how)
    finding = finding_of(case, "NS119")
    assert finding.places == places
    assert "no norm is folded in it" in finding.message
    words = repaired(case, "NS119")
    assert words == "exported the model anew: see case.exported"
    assert is_quiet(case, "NS119")


def test_what_is_deployed_as_it_is_is_left_in_peace():
    assert is_quiet(deployed_otherwise("as it is"), "NS119")


@pytest.mark.parametrize("make", rules.get("NS119").SICK)
def test_folding_anew_gives_the_function_of_the_model(make):
    case = make()
    x = case.loader[0][0]
    expected = copy.deepcopy(case.model).eval()(x)
    with torch.no_grad():
        assert float((case.exported(x) - expected).abs().max()) > 1e-4 * float(expected.abs().max())
        words = repaired(case, "NS119")
        torch.testing.assert_close(case.exported(x), expected, rtol=1e-4, atol=1e-5)
    assert words.startswith("folded anew: ")
    again = copy.deepcopy(case.model).eval()
    assert counted(len(surgery.fold(again, x).done), "norm") in words


def test_what_was_exported_in_train_mode_is_another_rules():
    """One cause, one finding: NS128 names the mode, and folds are no part of it."""
    case = folded((0.0, 0.0))
    with quiet():
        case.exported = torch.jit.trace(copy.deepcopy(case.model).train(), case.loader[0], check_trace=False)
    assert [finding.code for finding in checking.check(case, ["NS119", "NS128"], gap=False)] == ["NS128"]
