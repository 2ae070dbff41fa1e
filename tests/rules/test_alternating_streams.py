"""Streams that take turns: which batches belong together, at which level, and what sharing costs."""

import math

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet
from normscope import checking
from normscope.evidence import Case, Evidence, examples
from normscope.records import Severity


def in_turn(order, kinds, *, size=32, channels=6, seed=0, **options):
    """Normal batches of kinds (mean, deviation), in an order such as "ABAB"."""
    stream = torch.Generator().manual_seed(seed)
    loader = []
    for name in order:
        mean, deviation = kinds[name]
        loader.append(mean + deviation * torch.randn(size, channels, generator=stream))
    return examples.alone(examples.batch_norm(channels), loader, **options)


TWO = {"A": (0.0, 1.0), "B": (4.0, 1.0), "C": (-4.0, 0.3)}


@pytest.mark.parametrize("order", ["ABABABABAB", "AABBABBAAB", "ABCABCABCA", "AABAABAABA"])
def test_batches_are_sorted_into_their_streams(order):
    case = in_turn(order, TWO)
    streams = Evidence(case).streams
    assert [streams.of_batch[index] for index in range(10)] == ["ABC".index(name) for name in order]
    finding = finding_of(case, "NS135")
    assert finding.message.startswith(
        f"batches of {len(set(order))} kinds alternate in the loader, and 1 norm averages"
    )
    assert is_quiet(case, "NS120")
    assert is_quiet(case, "NS105")


@pytest.mark.parametrize("order", ["AAAAABBBBB", "AAABBBCCCC", "AAAAAAAAAB", "ABBBBBBBBA", "AAAAAAAAAA"])
def test_kinds_that_do_not_come_again_are_no_streams(order):
    case = in_turn(order, TWO)
    # A batch in the midst of others is no stream either; the first and the last are one that comes again.
    assert is_quiet(case, "NS135") is (order != "ABBBBBBBBA")


def test_streams_that_differ_in_variance_alone_are_found():
    finding = finding_of(in_turn("ABABABABAB", {"A": (0.0, 1.0), "B": (0.0, 0.1)}), "NS135")
    assert finding.details["deviations"] == pytest.approx(10, rel=0.1)
    # The divergence of two variances v and 0.01 v from their mean.
    assert finding.measured == pytest.approx(0.5 * math.log(0.505 / 0.1), rel=0.05)


@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("same", [False, True])
def test_batches_drawn_at_random_are_of_one_kind(size, same):
    """Also where all channels are one: then the quartile over channels averages nothing."""
    for seed in range(15):
        case = in_turn("A" * 10, TWO, size=size, channels=1 if same else 8, seed=seed)
        if same:
            case.loader = [batch.expand(-1, 8).contiguous() for batch in case.loader]
            case.model[0] = examples.batch_norm(8)
        assert Evidence(case).streams is None


def test_batches_each_from_a_source_of_its_own_are_no_streams():
    for seed in range(10):
        stream = torch.Generator().manual_seed(seed)
        loader = [torch.randn(32, 6, generator=stream) + 2 * torch.randn(6, generator=stream) for _ in range(10)]
        case = examples.alone(examples.batch_norm(6), loader)
        assert is_quiet(case, "NS135")
        assert not is_quiet(case, "NS120")


@pytest.mark.parametrize("period", [2, 3, 4, 5])
def test_streams_of_a_long_loader_are_seen_whatever_their_period(period):
    order = ["A" if 2 * (index % period) < period else "B" for index in range(240)]
    assert not is_quiet(in_turn("".join(order), TWO, size=8, channels=3), "NS135")


class Reader(nn.Module):
    """Reads a number off what a norm puts out."""

    def __init__(self):
        super().__init__()
        self.norm = examples.batch_norm(6, mean=1.0)

    def forward(self, x):
        return self.norm(x)


@pytest.mark.parametrize("constant", [0.0, 7.0, 9.0])
def test_the_cost_is_the_loss_with_shared_statistics(constant):
    kinds = [examples.two_values(0.0, 1.0, 32, 6), examples.two_values(2.0, 1.0, 32, 6)]

    def loss_fn(model, batch):
        """Zero where a batch comes out with mean 0."""
        return constant + 1e-3 + 1.6 * model(batch).mean(0).square().mean()

    case = Case(Reader().train(), loss_fn, [kinds[index % 2] for index in range(10)])
    finding = finding_of(case, "NS135")
    # Means of 0 and 2 about 1, with a variance of 1 + 1: each comes out at 1 / sqrt(2), and the loss rises by 0.8.
    assert finding.details["loss_ratio"] == pytest.approx(1 + 0.8 / (constant + 1e-3), rel=1e-3)
    assert finding.severity is (Severity.WARNING if constant < 8 else Severity.INFO)
    assert finding.cost == (
        f"the loss in eval mode is {constant + 0.801:.4g}; with statistics of each kind {constant + 1e-3:.4g}"
    )


def test_a_loss_that_cannot_be_evaluated_leaves_a_warning():
    case = in_turn("ABABABABAB", TWO, channels=6)
    case.model[0].running_mean.fill_(1.0)

    def loss_fn(model, batch):
        if not model.training:
            raise RuntimeError("no losses in eval mode")
        return model(batch).square().mean()

    case.loss_fn = loss_fn
    finding = finding_of(case, "NS135")
    assert finding.severity is Severity.WARNING
    assert "loss_ratio" not in finding.details


def test_kinds_in_one_update_are_another_rules():
    case = in_turn("ABABABABAB", TWO)

    def step(model, batch):
        case.optimizer.zero_grad()
        (model(batch).square().mean() + model(-3 * batch - 9).square().mean()).backward()
        case.optimizer.step()

    case.step = step
    found = checking.check(case, ["NS112", "NS135"], gap=False)
    assert [finding.code for finding in found] == ["NS112"]


def test_accumulation_over_two_streams_is_another_rules():
    """Two batches of the loader make one update."""
    case = in_turn("ABABABABAB", TWO)
    steps = []

    def step(model, batch):
        steps.append(1)
        examples.mean_square(model, batch).backward()
        if len(steps) % 2 == 0:
            case.optimizer.step()
            case.optimizer.zero_grad()

    case.step = step
    found = checking.check(case, ["NS112", "NS113", "NS135"], gap=False)
    assert [finding.code for finding in found] == ["NS112"]


def test_frozen_norms_are_not_looked_at():
    case = in_turn("ABABABABAB", TWO)
    case.model.eval()
    assert is_quiet(case, "NS135")


def test_norms_that_the_step_puts_in_train_mode_are_looked_at():
    case = in_turn("ABABABABAB", TWO)
    case.model.eval()

    def step(model, batch):
        model.train()
        examples.mean_square(model, batch).backward()
        case.optimizer.step()

    case.step = step
    assert not is_quiet(case, "NS135")
