"""Small rates: accuracy at equal and at own best rates, planted; the networks of both arms are those of the builder."""

import pytest
import torch

from kit.planted_evidence import Plant, jitter, part, words_by_name
from kit.small_studies import settings
from normscope import studies
from normscope.builders import residual_mlp
from normscope.studies.lab.data import load
from normscope.studies.lab.streams import stream

SLUG = "small-rate-no-gain"
STUDY = studies.get(SLUG)
RATES = [0.0001, 0.01, 0.1]


def planted(none=(0.84, 0.95, 0.1), batch=(0.62, 0.97, 0.98), *, train=(0.9, 0.6)):
    plant = Plant(settings(SLUG, lrs=RATES))
    plant.chance()
    for seed in plant.seeds:
        for arm, ends, start in (("none", none, train[0]), ("batch", batch, train[1])):
            for index, (rate, test) in enumerate(zip(RATES, ends, strict=True)):
                test += jitter(seed, 0.002, index + len(arm))
                learnt = test if index else start + jitter(seed, 0.002, 5 + len(arm))
                plant.end(arm, seed, test, train=learnt, val_loss=1 - test, lr=rate)
    return plant.evidence()


@pytest.mark.parametrize(
    ("none", "batch", "outcome"),
    [(0.84, 0.62, "holds"), (0.84, 0.84, "holds"), (0.84, 0.88, "opposite"), (0.84, 0.85, "unclear")],
)
def test_the_judge_finds_what_was_planted(none, batch, outcome):
    assert STUDY.judge(planted((none, 0.95, 0.1), (batch, 0.97, 0.98))).outcome.value == outcome


def test_each_arm_has_its_own_best_rate():
    verdict = STUDY.judge(planted())
    best, gain = part(verdict, "own best rates"), part(verdict, "gain of larger rates")
    assert best.effect.point == pytest.approx(0.98 - 0.95, abs=0.003)
    assert gain.effect.point == pytest.approx((0.98 - 0.62) - (0.95 - 0.84), abs=0.003)
    assert {best.outcome.value, gain.outcome.value} == {"holds"}
    assert words_by_name(STUDY.judge(planted(batch=(0.62, 0.9, 0.9))))["own best rates"] == "opposite"


@pytest.mark.parametrize(("train", "outcome"), [((0.9, 0.6), "holds"), ((0.6, 0.9), "opposite")])
def test_speed_is_training_accuracy(train, outcome):
    assert words_by_name(STUDY.judge(planted(train=train)))["speed"] == outcome


def test_both_arms_have_the_weights_of_their_seed_and_momentum():
    data = load("digits")
    first = None
    for cell in STUDY.cells("quick", [4], data)[:2]:
        net = STUDY.network(cell, data, "cpu")
        assert str(net) == str(residual_mlp(6, 64, inputs=64, outputs=10, scheme=cell.arm, seed=stream(4, "init")))
        weights = [module.weight for module in net.modules() if isinstance(module, torch.nn.Linear)]
        first = first or weights
        assert all(torch.equal(a, b) for a, b in zip(first, weights, strict=True))
        optimizer = STUDY.options(cell)["optimizer"](net)
        (group,) = optimizer.param_groups
        assert (group["lr"], group["momentum"]) == (cell.point["lr"], 0.9)
