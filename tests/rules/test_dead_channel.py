"""Dead channels of each kind, counted by hand; what is pruned and what stays."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from normscope.evidence import examples


def planted(constant=(), faint=(), cut=(), *, channels=20, behind=None, then=None):
    norm = examples.batch_norm(channels)
    deviations = torch.ones(channels)
    with torch.no_grad():
        deviations[list(constant)] = 1e-7
        norm.running_var[list(constant)] = 1e-14
        norm.weight[list(faint)] = 1e-5
        norm.bias[list(cut)] = -3.0
    x = examples.two_values(0.0, deviations, 32, channels)
    return examples.alone(norm, [x] * 4, then=[nn.ReLU()] if then is None else then)


@pytest.mark.parametrize(
    ("constant", "faint", "cut"),
    [([0, 5], [], []), ([], [19, 3, 4], []), ([], [], [1, 2, 3, 7]), ([0], [1, 2], [3, 4, 5]), ([2], [2], [2, 6])],
)
def test_each_kind_is_counted_and_the_channels_once(constant, faint, cut):
    case = planted(constant, faint, cut)
    finding = finding_of(case, "NS121")
    dead = sorted({*constant, *faint, *cut})
    really_constant = set(constant) - set(faint)  # next to no gain: its rounding is not made larger
    assert dict(finding.details) == {"constant": len(really_constant), "without_gain": len(faint), "cut_off": len(cut)}
    assert finding.measured == pytest.approx(len(dead) / 20)
    assert finding.message.startswith(f"{len(dead)} of 20 channels carry nothing: ")
    words = {"constant before the norm": len(really_constant), "with next to no gain": len(faint)}
    words["never above zero before a ReLU"] = len(cut)
    for text, count in words.items():
        assert (f"{count} {text}" in finding.message) is bool(count)
    assert repaired(case, "NS121") == f"set the gain of {len(dead)} dead channels to zero"
    norm, alive = case.model[0], [index for index in range(20) if index not in dead]
    assert norm.weight.detach()[dead].eq(0).all()
    assert norm.bias.detach()[sorted(cut)].eq(0).all()
    assert norm.weight.detach()[alive].eq(1).all()
    assert norm.bias.detach()[sorted(set(range(20)) - set(cut))].eq(0).all()


def test_the_share_is_of_all_channels_of_all_norms():
    case = planted(faint=[0, 1], then=[nn.ReLU(), examples.batch_norm(20)])
    assert is_quiet(case, "NS121")  # 2 of 40 is no more than 5 %
    with torch.no_grad():
        case.model[2].weight[7] = 1e-5
    finding = finding_of(case, "NS121")
    assert finding.measured == pytest.approx(3 / 40)
    assert finding.places == ("0", "2")


@pytest.mark.parametrize("then", [[], [nn.LeakyReLU()], [nn.Tanh()]])
def test_below_zero_is_dead_only_if_nobody_but_relu_reads_it(then):
    assert is_quiet(planted(cut=range(8), then=then), "NS121")


@pytest.mark.parametrize("then", [[nn.ReLU()], [nn.ReLU6()]])
def test_a_channel_that_relu_cuts_off_is_dead(then):
    assert finding_of(planted(cut=range(8), then=then), "NS121").details["cut_off"] == 8


def test_two_readers_of_which_one_is_no_relu_keep_a_channel_alive():
    case = planted(cut=range(8))
    norm, relu = case.model

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.relu = norm, relu

        def forward(self, x):
            y = self.norm(x)
            return self.relu(y) + 0.1 * y

    case.model = Both().train()
    assert is_quiet(case, "NS121")


def test_gains_of_exactly_zero_are_pruned_already():
    case = planted()
    with torch.no_grad():
        case.model[0].weight[:9] = 0.0
    assert is_quiet(case, "NS121")


def test_a_channel_that_varied_in_the_past_is_not_constant():
    case = planted(constant=[0, 1, 2])
    case.model[0].running_var[:3] = 1.0
    assert is_quiet(case, "NS121")
