"""Dynamic tanh against norms: the judge finds planted losses, rates and growths, each by its own rule."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, part
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.claims.dyt_replaces_norm import GROWTH

SLUG = "dyt-replaces-norm"
STUDY = studies.get(SLUG)
RATES = [0.001, 0.003, 0.01, 0.03, 0.1]


def planted(losses=(1.0, 1.0, 1.0), most=(0.03, 0.03, 0.003), growths=(1.05, 1.02, 1.3)):
    """Runs of layer norm, dynamic tanh and no norm.

    Args:
        losses: Held-out losses at the best rate, over 2.8.
        most: Largest usable rates.
        growths: Factors of the gradient norm a block toward the input.
    """
    plant = Plant(settings(SLUG, lrs=RATES, depths=[2, 6], judged=6))
    for seed in plant.seeds:
        for turn, arm in enumerate(("layer", "dyt", "none")):
            for depth in (2, 6):
                for lr in RATES:
                    point = {"depth": depth, "lr": lr}
                    usable = lr <= most[turn] * 1.001
                    loss = 2.8 * losses[turn] * (1.0 if usable else 1.2) * math.exp(jitter(seed, 0.002, turn))
                    plant.end(arm, seed, test_loss=loss, val_loss=loss, **point)
                    del plant.rows[-2]  # the training loss of `end`
                    gain = (0.6 if usable else 0.02) + jitter(seed, 0.01, 10 * round(lr * 1000) + turn)
                    plant.add(arm, seed, "loss", 3.1 - gain, step=99, **point)
                    plant.add(arm, seed, "frequency_loss", 3.1, probe="text", **point)
                    for block in range(depth):
                        norm = growths[turn] ** (depth - block) * math.exp(jitter(seed, 0.01, 10 * block + turn))
                        plant.add(arm, seed, "norm", norm, probe="gradient", site=f"blocks.{block}", **point)
    return plant.evidence()


@pytest.mark.parametrize(("dyt", "word"), [(1.0, "holds"), (0.9, "holds"), (1.015, "holds"), (1.05, "opposite")])
def test_the_judge_finds_what_was_planted(dyt, word):
    verdict = STUDY.judge(planted((1.0, dyt, 1.0)))
    assert verdict.outcome.value == word
    assert verdict.name == "loss against layer, 6 blocks"


@pytest.mark.parametrize(("most", "words"), [
    ((0.03, 0.03, 0.003), ("holds", "holds")), ((0.03, 0.01, 0.01), ("opposite", "no effect that matters")),
    ((0.01, 0.003, 0.03), ("opposite", "opposite")),
])  # fmt: skip
def test_rates_are_compared_with_a_norm_and_without(most, words):
    verdict = STUDY.judge(planted(most=most))
    found = tuple(part(verdict, f"rate against {arm}, 6 blocks").outcome.value for arm in ("layer", "none"))
    assert found == words


@pytest.mark.parametrize(("none", "word"), [(1.1, "holds"), (1.0, "no effect that matters"), (0.9, "opposite")])
def test_a_network_without_a_norm_may_be_as_good(none, word):
    assert part(STUDY.judge(planted((1.0, 1.0, none))), "loss against none, 6 blocks").outcome.value == word


def test_growth_is_the_factor_a_block_toward_the_input():
    evidence = planted(growths=(1.05, 1.02, 1.3))
    assert GROWTH(evidence, arm="none", depth=6, lr=0.001).mean() == pytest.approx(math.log(1.3), abs=0.02)
    verdict = STUDY.judge(evidence)
    assert [part(verdict, f"growth, {arm}").outcome.value for arm in ("dyt", "none")] == ["holds", "opposite"]


def test_arms_have_the_same_start_but_for_their_norms():
    found = {arm: cell_records(SLUG, arm, {"depth": 2, "lr": 0.01}) for arm in STUDY.ARMS}
    assert len({values(records, "frequency_loss")[0] for records in found.values()}) == 1
    assert len({values(records, "loss")[0] for records in found.values()}) == 3
    assert all(len(values(records, "norm", "gradient")) == 2 for records in found.values())
