"""Dynamic tanh against norms: the judge finds planted losses, rates and growths, each by its own rule."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from kit.planted_evidence import Plant, jitter, part
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.records import Cell
from normscope.studies.claims.dyt_replaces_norm import WEIGHTS, growth
from normscope.studies.lab import token_norms
from normscope.studies.lab.data import Split, load
from normscope.studies.lab.last_gradients import block_gradients
from normscope.studies.lab.transformer import transformer

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
                        for name in WEIGHTS:
                            plant.add(arm, seed, name, norm, probe="gradient", site=f"blocks.{block}", **point)
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
    assert growth("norm")(evidence, arm="none", depth=6).mean() == pytest.approx(math.log(1.3), abs=0.02)
    verdict = STUDY.judge(evidence)
    for name in WEIGHTS:
        assert [part(verdict, f"growth, {arm}, {name}").outcome.value for arm in ("dyt", "none")] == [
            "holds",
            "opposite",
        ]


def test_gradients_are_those_of_autograd_and_of_undivided_weights():
    """The second norms are those of a network that begins with Glorot's weights; the first leave it as it was."""
    data = load("text")
    x, y = (torch.randint(0, data.classes, (2, 8), generator=torch.Generator().manual_seed(i)) for i in range(2))
    found = {}
    for init in ("xavier-scaled", "xavier"):
        model = transformer(data, token_norms.dyt(), seed=1, width=8, blocks=3, heads=2, context=8, init=init)
        weights = [block.feedforward.contract.weight for block in model.blocks]
        expected = torch.autograd.grad(cross_entropy(model(x), y), weights)
        found[init] = [float(each.norm()) for each in expected]
        assert block_gradients(model, x, y, 3) == pytest.approx(found[init], rel=1e-5)
        assert all(parameter.grad is None for parameter in model.parameters())
    model = transformer(data, token_norms.dyt(), seed=1, width=8, blocks=3, heads=2, context=8, init="xavier-scaled")
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    cell = Cell(SLUG, "dyt", 1, {"depth": 3, "lr": 0.01}, {"batch": 2})
    records = list(STUDY.before(cell, model, Split(x, y, x, y, x, y)))
    assert values(records, "norm") == pytest.approx(found["xavier-scaled"], rel=1e-5)
    assert values(records, "norm_glorot") == pytest.approx(found["xavier"], rel=1e-4)
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())


def test_arms_have_the_same_start_but_for_their_norms():
    found = {arm: cell_records(SLUG, arm, {"depth": 2, "lr": 0.01}) for arm in STUDY.ARMS}
    assert len({values(records, "frequency_loss")[0] for records in found.values()}) == 1
    assert len({values(records, "loss")[0] for records in found.values()}) == 3
    assert all(len(values(records, "norm", "gradient")) == 2 for records in found.values())
