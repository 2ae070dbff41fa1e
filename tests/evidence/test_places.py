"""Places of calls, the moments of what norms are given, and how far apart kinds of data lie, by hand."""

import math

import pytest
import torch
from torch import nn

from normscope.evidence import Case, Evidence, apart, examples, excess_of_means, kinds_of_pass, kinds_of_update
from normscope.evidence.moments import Moments, spread_out


class Net(nn.Module):
    """Calls its norm as often as it is told."""

    def __init__(self):
        super().__init__()
        self.norm = examples.batch_norm(3)

    def forward(self, x, times=2):
        for _ in range(times):
            x = self.norm(x)
        return x


def places(loss_fn, *, step=None, batches=3):
    stream = torch.Generator().manual_seed(0)
    model = Net().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    case = Case(model, loss_fn, [torch.randn(8, 3, generator=stream) for _ in range(batches)], optimizer)
    case.step = step and (lambda model, batch: step(model, batch, optimizer))
    return Evidence(case, batches=batches)


@pytest.mark.parametrize(
    ("loss_fn", "expected"),
    [
        (lambda model, x: model(x).sum(), [(1, 0), (1, 1)]),
        (lambda model, x: model(x, 3).sum() + model(x, 1).sum(), [(1, 0), (1, 1), (1, 2), (2, 0)]),
        (lambda model, x: (model.norm(x) + model.norm(x)).sum(), [(0, 0), (0, 1)]),
        (lambda model, x: (model.norm(x) + model(x, 1) + model.norm(x)).sum(), [(0, 0), (1, 0), (1, 1)]),
    ],
)
def test_a_call_is_numbered_by_its_pass_and_within_it(loss_fn, expected):
    evidence = places(loss_fn)
    assert [call.place for call in evidence.training.calls] == expected * 3
    assert [call.place for call in evidence.moments["norm"]] == expected * 3
    assert [call.batch for call in evidence.moments["norm"]] == [n for n in range(3) for _ in expected]


def test_backward_passes_of_a_step_are_counted():
    def step(model, x, optimizer):
        optimizer.zero_grad()
        model(x, 1).sum().backward()
        (model(x, 1).sum() + model(x, 2).sum()).backward()
        with torch.no_grad():
            model(x, 1)
        optimizer.step()

    calls = places(lambda model, x: model(x).sum(), step=step).training.calls
    assert [call.backward for call in calls] == [0, 1, 1, 1, 2] * 3


def test_kinds_of_an_update_and_of_a_pass():
    def loss_fn(model, x):
        return model(x, 2).sum() + model(x, 3).sum()

    calls = places(loss_fn).training.calls
    assert [[len(kind) for kind in family] for family in kinds_of_pass(calls)] == [[3, 3], [3, 3, 3]]
    families = kinds_of_update(calls)  # the third call has none to be compared with
    assert [[[call.place for call in kind] for kind in family] for family in families] == [
        [[(1, index)] * 3, [(2, index)] * 3] for index in range(2)
    ]


@pytest.mark.parametrize("length", [3, 10, 25, 200, 100_000])
def test_batches_are_from_all_along_a_loader(length):
    numbers = spread_out(range(length), 10)
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 10
    reach = min(length, 200)
    assert numbers[-1] < max(10, reach)
    assert reach < 25 or numbers[-1] >= 0.8 * reach
    assert reach < 25 or len({number % 2 for number in numbers}) == 2
    assert spread_out(iter(()), 10) == list(range(10))


def test_moments_are_those_of_the_input():
    x = torch.randn(4, 6, 3, 5, 2, generator=torch.Generator().manual_seed(0)) * 3 + 7
    case = examples.alone(nn.BatchNorm3d(3), list(x.transpose(1, 2).contiguous().transpose(1, 2)[..., None]))
    for got, batch in zip(Evidence(case, batches=4).moments["0"], x.double(), strict=True):
        assert (got.samples, got.count) == (6, 60)
        mean = batch.mean((0, 2, 3))
        squares = (batch - mean[:, None, None]).square()
        torch.testing.assert_close(got.mean, mean)
        torch.testing.assert_close(got.variance, squares.mean((0, 2, 3)), rtol=1e-5, atol=0)
        torch.testing.assert_close(got.of_means, batch.mean((2, 3)).var(0), rtol=1e-4, atol=0)
        torch.testing.assert_close(got.of_squares, squares.mean((2, 3)).var(0), rtol=1e-4, atol=0)


def call(mean, variance, *, batch=0, samples=16, of_means=1.0):
    mean, variance, of_means = (torch.tensor([float(v)], dtype=torch.float64) for v in (mean, variance, of_means))
    return Moments(batch, (1, 0), samples, samples, mean, variance, of_means, variance)


def test_the_excess_is_that_of_the_means_and_within_kinds_that_of_each():
    calls = [call(mean, 1, batch=batch) for batch, mean in enumerate([0.0, 2.0, 1.0, 5.0])]
    times, share = excess_of_means(calls)
    between = float(torch.tensor([0.0, 2.0, 1.0, 5.0]).var())
    assert (times, share) == (pytest.approx(between * 16), pytest.approx(between / (between + 1)))
    within = ((1 / 2) + (9 / 2)) / 2  # of 0 and 1, of 2 and 5, over two degrees of freedom
    assert excess_of_means(calls, {0: 0, 1: 1, 2: 0, 3: 1})[0] == pytest.approx(within * 16)
    assert excess_of_means(calls[:2]) is None


def test_what_calls_of_one_kind_differ_by_is_taken_off():
    kinds = [[call(-1, 1), call(1, 1)], [call(3, 1), call(5, 1)]]
    # Means of 0 and 4 have a variance of 4; of it (1/4 + 1/4) * 2 / 2 is chance, by an unbiased variance of 2 in each.
    assert apart(kinds, 0.0).divergence == pytest.approx(0.5 * math.log(1 + 4 - 0.5))
    assert apart(kinds, 0.0).means == pytest.approx(4)
    logs = [[call(0, 1), call(0, 4)], [call(0, 9), call(0, 16)]]
    spread = (math.log(4) ** 2 / 2 + math.log(16 / 9) ** 2 / 2) / 2  # of the logarithms, in each
    expected = math.log((2.5 + 12.5) / 2) - (math.log(2.5) + math.log(12.5)) / 2 - 0.25 * spread / 2 * 2 / 2
    assert apart(logs, 0.0).divergence == pytest.approx(expected / 2)


def test_a_kind_weighs_as_much_as_it_has_calls():
    kinds = [[call(0, 1)] * 3, [call(0, 5)]]
    assert apart(kinds, 0.0).divergence == pytest.approx((math.log(2) - math.log(5) / 4) / 2)


def test_single_calls_leave_room_for_chance():
    for seed in range(20):
        stream = torch.Generator().manual_seed(seed)
        x = torch.randn(6, 8, 40, generator=stream, dtype=torch.float64)
        parts = [[Moments(0, (1, 0), 8, 8, part.mean(0), part.var(0, correction=0), *[part.var(0)] * 2)] for part in x]
        assert apart(parts, 1e-5).divergence < 0.05


def test_constant_channels_are_not_apart():
    assert apart([[call(0, 0)], [call(1e-4, 1e-9)]], 1e-5).divergence < 1e-3


def test_of_a_kind_that_does_not_vary_the_mean_is_compared():
    kinds = [[call(0, 1)], [call(0, 0)]]
    assert apart(kinds, 1e-5).divergence == 0.0
    far = [[call(0, 1)] * 2, [call(2, 0)] * 2]
    assert apart(far, 1e-5).divergence == pytest.approx(math.log(1 + 1) / 2, rel=1e-4)
    assert apart(far, 1e-5).deviations == pytest.approx(1.0)
