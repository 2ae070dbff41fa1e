"""Decay as a rate: the run by hand is torch's, the twin without decay is that run scaled, and the judge sees breaks."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from kit.planted_evidence import Plant, jitter, outcomes, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope._errors import UsageError
from normscope.studies.claims.weight_decay_is_exponential_rate import NO_EPS, Descent, alpha
from normscope.studies.lab.arms import batch_norm
from normscope.studies.lab.models import mlp

SLUG = "weight-decay-is-exponential-rate"
STUDY = studies.get(SLUG)
LR, DECAY = 0.1, 0.05


def networks(count):
    """Networks of the same weights, whose gammas and betas are not those of the start."""
    found = []
    for _ in range(count):
        norm = batch_norm(eps=NO_EPS, dtype=torch.float64)
        net = mlp(2, 12, inputs=6, classes=3, norm=norm, seed=1, bias=False).double()
        source = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if "norm" in name:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
        found.append(net)
    return found


def batches(count):
    source = torch.Generator().manual_seed(2)
    for _ in range(count):
        x = torch.randn(20, 6, generator=source, dtype=torch.float64)
        yield x, torch.randint(3, (20,), generator=source)


def hidden(net):
    return [parameter for name, parameter in net.named_parameters() if "linear.weight" in name]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_factor_is_the_larger_root(momentum):
    lr = LR * (1 - momentum)
    found = alpha(lr, DECAY, momentum)
    assert found**2 - (1 + momentum - lr * DECAY) * found + momentum == pytest.approx(0, abs=1e-15)
    assert momentum < found < 1
    assert momentum or found == pytest.approx(1 - LR * DECAY, rel=1e-15)


def test_decay_that_overtakes_the_momentum_has_no_factor():
    assert alpha(1.0, (1 - math.sqrt(0.5)) ** 2 - 1e-9, 0.5) == pytest.approx(math.sqrt(0.5), abs=1e-3)
    with pytest.raises(UsageError, match="smaller"):
        alpha(1.0, (1 - math.sqrt(0.5)) ** 2 + 1e-9, 0.5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_run_with_decay_is_that_of_torch(momentum):
    net, other = networks(2)
    run = Descent(net, LR, momentum, decay=DECAY)
    chosen = hidden(other)
    rest = [parameter for parameter in other.parameters() if all(parameter is not weight for weight in chosen)]
    optimizer = torch.optim.SGD([{"params": chosen, "weight_decay": DECAY}, {"params": rest}], lr=LR, momentum=momentum)
    for x, y in batches(15):
        optimizer.zero_grad()
        outputs = other(x)
        cross_entropy(outputs, y).backward()
        optimizer.step()
        torch.testing.assert_close(run.take(x, y), outputs.detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_weights_of_both_runs_differ_by_a_power_of_the_factor(momentum):
    first, second = networks(2)
    lr = LR * (1 - momentum)
    growth = alpha(lr, DECAY, momentum)
    runs = Descent(first, lr, momentum, decay=DECAY), Descent(second, lr, momentum, growth=growth)
    for step, (x, y) in enumerate(batches(20)):
        assert runs[1].factor == pytest.approx(growth ** -(2 * step + 1))
        for weight, grown in zip(hidden(first), hidden(second), strict=True):
            torch.testing.assert_close(weight.detach(), growth**step * grown.detach(), rtol=1e-10, atol=1e-12)
        outputs, others = (run.take(x, y) for run in runs)
        torch.testing.assert_close(outputs, others, rtol=1e-10, atol=1e-12)


def test_the_start_of_the_momentum_is_needed():
    first, second = networks(2)
    runs = Descent(first, 0.01, 0.9, decay=DECAY), Descent(second, 0.01, 0.9, growth=alpha(0.01, DECAY, 0.9))
    for buffer in runs[1]._buffers:  # white box: torch begins there, the theorem does not
        buffer.zero_()
    apart = [float((runs[0].take(x, y) - runs[1].take(x, y)).norm()) for x, y in batches(4)]
    assert apart[0] < 1e-12
    assert apart[-1] > 1e-3


def planted(exact=1e-13, *, survives=1e-4, breaks=0.3, left_out=0.2):
    plant = Plant(settings(SLUG))
    for seed in plant.seeds:
        for momentum in plant.settings["momenta"]:
            apart = {"exact": exact, "eps": survives, "single": survives, "large eps": breaks, "everything": breaks}
            for salt, (arm, value) in enumerate({**apart, "left out": left_out}.items()):
                size = value * math.exp(jitter(seed, 0.2, salt))
                plant.add(arm, seed, "apart", size, probe="twins", step=12, momentum=momentum)
    return plant.evidence()


@pytest.mark.parametrize(("exact", "outcome"), [(1e-13, "exact"), (1e-6, "false"), (float("nan"), "not measurable")])
def test_the_judge_finds_what_was_planted(exact, outcome):
    assert STUDY.judge(planted(exact)).outcome.value == outcome


def test_what_the_identity_survives_is_told_from_what_breaks_it():
    words = words_by_name(STUDY.judge(planted()))
    assert {words[f"{arm}, momentum 0"] for arm in ("eps", "single")} == {"holds"}
    assert {words[f"{arm}, momentum 0.9"] for arm in ("large eps", "everything")} == {"opposite"}
    assert outcomes(STUDY.judge(planted(survives=0.03)), "survives float32") == {"opposite"}


def test_where_decay_does_nothing_the_identity_says_nothing():
    verdict = STUDY.judge(planted(left_out=1e-4))
    assert verdict.outcome.value == "not measurable"
    assert "a premise is not met" in verdict.why


@pytest.mark.trains
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_cell_keeps_both_runs_together_but_for_parameters_that_see_their_scale(momentum):
    apart = {
        arm: values(cell_records(SLUG, arm, {"momentum": momentum}), "apart")[-1]
        for arm in ("exact", "everything", "left out")
    }
    assert apart["exact"] < 1e-10
    assert min(apart["everything"], apart["left out"]) > 1e-3
