"""Calls that the data decide: how many for which batch, and what goes by turns or by chance."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet
from normscope import layers
from normscope.evidence import Case, examples


class Repeated(nn.Module):
    """A norm that is called as often as ``times(model, x)`` says."""

    def __init__(self, norm, times):
        super().__init__()
        self.always, self.sometimes, self.times, self.calls = norm(3), norm(3), times, 0

    def forward(self, x):
        self.calls += 1
        x = self.always(x)
        for _ in range(self.times(self, x)):
            x = self.sometimes(x)
        return x


def sync(channels):
    return nn.SyncBatchNorm(channels)


def set_up(times, norm=sync, values=(1.0, 2.0, 3.0, 4.0)):
    model = Repeated(norm, times).train()
    model.always.eps = 1e-12
    # Behind the norm data are alike: what batches tell apart is their third moment's sign and size.
    loader = [torch.cat([torch.zeros(int(8 * value), 3), torch.ones(4, 3)]) for value in values]
    return Case(model, examples.mean_square, loader, torch.optim.SGD(model.parameters(), lr=0.0))


def by_size(model, x):
    return len(x) // 12 - 1 if len(x) < 30 else 3


@pytest.mark.parametrize("norm", [sync, lambda channels: layers.BatchNorm1d(channels, statistics="sync")])
def test_the_fewest_and_the_most_calls_are_said(norm):
    finding = finding_of(set_up(by_size, norm), "NS116")
    assert finding.places == ("sometimes",)
    assert finding.measured == 3  # none for 12 and 20 rows, three for 28 less ... and for 36
    assert "0 times for one batch, 3 for another" in finding.message
    assert finding.message.startswith("1 synchronised norm is")


@pytest.mark.parametrize(
    ("times", "norm"),
    [
        (lambda model, x: 2, sync),  # always as often
        (lambda model, x: model.calls % 2, sync),  # by turns
        (lambda model, x: int(torch.rand(()) < 0.5), sync),  # by chance
        (by_size, lambda channels: nn.BatchNorm1d(channels)),  # not synchronised
    ],
)
def test_what_the_data_do_not_decide_is_left_in_peace(times, norm):
    torch.manual_seed(0)
    assert is_quiet(set_up(times, norm), "NS116")


def test_norms_in_eval_mode_wait_for_nobody():
    case = set_up(by_size)
    case.model.eval()
    assert is_quiet(case, "NS116")
