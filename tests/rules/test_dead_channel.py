"""Dead channels of each kind, counted by hand; what is pruned and what stays."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from normscope.evidence import Case, examples


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


class Dense(nn.Module):
    """A network without norms whose ReLUs are functions or modules, with skips or without."""

    def __init__(self, closed=(), *, depth=4, width=16, function=True, skips=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.relus, self.head = nn.ModuleList(nn.ReLU() for _ in range(depth)), nn.Linear(width, 4)
        self.function, self.skips = function, skips
        for index in closed:
            nn.init.constant_(self.layers[index].bias, -50.0)

    def forward(self, x):
        for layer, relu in zip(self.layers, self.relus, strict=True):
            y = torch.relu(layer(x)) if self.function else relu(layer(x))
            x = x + y if self.skips else y
        return self.head(x)


def dense(closed=(), *, width=16, **options):
    return examples.healthy(lambda: Dense(closed, width=width, **options), trained=0, shape=(width,))


@pytest.mark.parametrize("closed", [[0], [3], [1, 2, 3]])
@pytest.mark.parametrize(("function", "skips"), [(True, False), (False, False), (True, True)])
def test_a_relu_at_which_nothing_passes_is_found_at_any_depth(closed, function, skips):
    finding = finding_of(dense(closed, function=function, skips=skips), "NS121")
    assert finding.places == tuple(f"layers.{i}" if function else f"relus.{i}" for i in closed)
    assert finding.measured == 1.0
    assert finding.bound == 0.9
    assert not finding.fixable


@pytest.mark.parametrize("skips", [False, True])
def test_relus_that_let_things_through_are_left_in_peace(skips):
    assert is_quiet(dense(skips=skips), "NS121")


def some_closed(closed, *, rate=0.5, units=20, size=64):
    """A layer that passes its input on, of whose units some are never above zero and the others at a share of rows."""
    rows = (torch.arange(size) < rate * size)[:, None]
    x = torch.where(rows, 1.0, -1.0) * torch.where(torch.arange(units) < closed, -1.0, 1.0).abs()
    x = torch.where(torch.arange(units) < closed, -1.0, x)
    model = nn.Sequential(nn.Linear(units, units), nn.ReLU(), nn.Linear(units, 2)).train()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(units))
        model[0].bias.zero_()
    return Case(model, examples.mean_square, [x] * 4, torch.optim.SGD(model.parameters(), lr=0.0))


@pytest.mark.parametrize(("closed", "rate", "found"), [(19, 0.5, True), (18, 0.5, False), (19, 0.08, False)])
def test_the_bounds_of_a_closed_relu(closed, rate, found):
    case = some_closed(closed, rate=rate)
    assert is_quiet(case, "NS121") is not found
    if found:
        assert finding_of(case, "NS121").measured == pytest.approx(closed / 20)


def test_few_values_show_nothing():
    assert is_quiet(some_closed(20, size=15), "NS121")  # 60 values a unit in four batches
    assert not is_quiet(some_closed(20, size=16), "NS121")


@pytest.mark.parametrize(("skips", "found"), [(False, True), (True, False)])
def test_a_narrow_layer_is_closed_by_chance_unless_nothing_is_learnt_before_it(skips, found):
    assert is_quiet(dense([1], width=4, skips=skips), "NS121") is not found


def test_channels_of_convolutions_and_of_the_last_axis_are_told_apart():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mix, self.head = nn.Conv1d(3, 10, 3, padding=1), nn.Linear(9, 12), nn.Linear(12, 4)
            nn.init.constant_(self.mix.bias, -50.0)

        def forward(self, x):
            h = torch.relu(self.conv(x))
            return self.head(torch.relu(self.mix(h)).mean(1))

    case = examples.healthy(Both, trained=0, shape=(3, 9))
    assert finding_of(case, "NS121").places == ("mix",)


def test_where_some_units_live_samples_are_counted_and_not_values():
    case = some_closed(19, size=12)
    case.loader = [x[:, None].expand(-1, 9, -1).contiguous() for x in case.loader]  # 48 samples, 432 values a unit
    assert is_quiet(case, "NS121")
    case.loader = [torch.cat([x, x]) for x in case.loader]
    assert finding_of(case, "NS121").measured == pytest.approx(0.95)
