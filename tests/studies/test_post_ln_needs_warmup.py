"""Warm-up by placement: gains are counted from the frequencies, and the judge finds planted rates."""

import math

import numpy as np
import pytest
import torch

from kit.planted_evidence import Plant, jitter, part, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.usable_rates import LARGEST, frequency_loss, gains, largest_table

SLUG = "post-ln-needs-warmup"
STUDY = studies.get(SLUG)
RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
LRS = {"post": RATES, "pre": RATES}
ARMS = ("post", "post, warm", "pre", "pre, warm")


def planted(post=(0.003, 0.01), pre=(0.03, 0.03), *, cold=0.0, diverged=False):
    """Runs of each placement (without, with warm-up) that train up to a rate, and beyond it no more than frequencies.

    Args:
        post: Largest usable rates of post-norm.
        pre: Those of pre-norm.
        cold: By how much the losses without warm-up lie higher.
        diverged: Whether runs beyond that rate diverge.
    """
    plant = Plant(settings(SLUG, lrs=LRS, steps=100))
    for seed in plant.seeds:
        for arm, most in zip(ARMS, (*post, *pre), strict=True):
            for lr in RATES:
                usable = lr <= most * 1.001
                gain = (0.6 if usable else 0.02) + jitter(seed, 0.01, round(lr * 1000) + len(arm))
                loss = 3.1 - gain + (0.0 if "warm" in arm else cold)
                plant.add(arm, seed, "frequency_loss", 3.1, probe="text", lr=lr)
                lost = int(diverged and not usable)
                plant.end(arm, seed, test_loss=loss, val_loss=loss, diverged=lost, lr=lr)
                del plant.rows[-2]  # the training loss of `end`
                plant.add(arm, seed, "loss", 3.1 - gain, step=99, lr=lr)
    return plant.evidence()


@pytest.mark.parametrize(
    ("post", "word"),
    [((0.003, 0.03), "holds"), ((0.01, 0.01), "no effect that matters"), ((0.03, 0.003), "opposite")],
)
@pytest.mark.parametrize("diverged", [False, True])
def test_the_judge_finds_what_was_planted(post, word, diverged):
    assert STUDY.judge(planted(post, diverged=diverged)).outcome.value == word


@pytest.mark.parametrize(("pre", "words"), [
    ((0.03, 0.03), ("holds", "holds")), ((0.01, 0.03), ("opposite", "no effect that matters")),
    ((0.003, 0.1), ("opposite", "opposite")),
])  # fmt: skip
def test_pre_norm_is_judged_by_itself_and_against_post_norm(pre, words):
    found = words_by_name(STUDY.judge(planted((0.003, 0.01), pre)))
    assert (found["pre"], found["post against pre"]) == words


def test_a_rate_beyond_the_grid_is_a_bound():
    verdict = STUDY.judge(planted((0.003, 0.3)))
    assert verdict.outcome.value == "holds"
    assert verdict.amount.startswith("at least ")


@pytest.mark.parametrize(("cold", "word"), [(0.2, "holds"), (0.0, "no effect that matters"), (-0.2, "opposite")])
def test_losses_at_own_best_rates_are_compared(cold, word):
    verdict = STUDY.judge(planted(cold=cold))
    assert {part(verdict, name).outcome.value for name in ("loss, post", "loss, pre", "loss at 0.001, pre")} == {word}


def test_gains_are_counted_from_the_frequencies_and_none_is_left_of_a_run_that_diverged():
    evidence = planted(diverged=True)
    assert gains(evidence, 0.001, arm="post").mean() == pytest.approx(0.6, abs=0.02)
    assert not gains(evidence, 0.3, arm="post").any()
    at = LARGEST.read(evidence, arm="post")
    assert np.all((at.steps > math.log(0.003)) & (at.steps < math.log(0.01)))
    assert not at.missed.any()
    assert len(largest_table(evidence, STUDY.wording.arms).rows) == 4


def test_an_arm_that_learns_at_no_rate_has_no_largest():
    evidence = planted((1e-9, 0.01))
    found = LARGEST.read(evidence, arm="post")
    assert np.isnan(found.steps).all()
    assert not found.missed.any(), "nothing was learnt at the largest rate, so it is no bound"
    assert STUDY.judge(evidence).outcome.value == "not measurable"


def test_the_loss_of_the_frequencies_is_that_of_their_logarithms():
    labels = torch.tensor([[0, 0, 1, 3], [0, 0, 1, 1]])
    logits = torch.log(torch.tensor([4 / 8, 3 / 8, 1e-9, 1 / 8])).expand(8, 4)
    expected = float(torch.nn.functional.cross_entropy(logits, labels.flatten()))
    assert frequency_loss(labels) == pytest.approx(expected, rel=1e-6)


def test_arms_differ_in_placement_and_warm_up_alone():
    losses = {arm: values(cell_records(SLUG, arm, {"lr": 0.01}), "loss") for arm in ARMS}
    for placement in ("post", "pre"):
        cold, warm = losses[placement], losses[f"{placement}, warm"]
        assert cold[0] == warm[0]
        assert cold[1] != warm[1]
    assert losses["pre"][0] != losses["post"][0]
