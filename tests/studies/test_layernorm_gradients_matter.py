"""Derivatives or forward pass: the judge tells which of the two brings more, at one rate and at own best rates."""

import pytest

from kit.planted_evidence import Plant, jitter, part, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.records import answer, standing

SLUG = "layernorm-gradients-matter"
STUDY = studies.get(SLUG)
CHANCE = 4.5
MAIN = ("layer", "cut", "none")


def planted(
    deep=(3.0, 3.3, 4.3), shallow=(3.0, 3.2, 3.0), best=(2.8, 2.8, 2.8), *, scaled=None, variance=3.2, mean=3.0, lost=()
):
    """Losses of layer norm, statistics cut, and no norm: of the judged depth, the other, and at the other rate."""
    plant = Plant(settings(SLUG))
    for seed in plant.seeds:
        for depth, lr, losses in ((2, 0.003, deep), (1, 0.003, shallow), (2, 0.01, best)):
            for arm, loss in zip(MAIN, losses, strict=True):
                _end(plant, arm, seed, loss, depth, lr, diverged=(arm, lr) in lost)
        for arm in MAIN:
            _end(plant, arm, seed, (scaled or deep)[MAIN.index(arm)], 2, 0.003, init="xavier-scaled")
        _end(plant, "cut-mean", seed, mean, 1, 0.003)
        _end(plant, "cut-variance", seed, variance, 1, 0.003)
    return plant.evidence()


def _end(plant, arm, seed, loss, depth, lr, *, init="xavier", diverged=False):
    at = {"depth": depth, "lr": lr, "init": init}
    loss += jitter(seed, 0.02, len(arm))
    plant.add(arm, seed, "loss", CHANCE, probe="chance", **at)
    if diverged:
        plant.add(arm, seed, "diverged", 1, step=2, **at)
    else:
        plant.end(arm, seed, test_loss=loss, val_loss=loss, step=4, **at)


@pytest.mark.parametrize(
    ("deep", "outcome"),
    [
        ((3.0, 3.4, 3.5), "holds"),
        ((3.0, 3.4, 3.2), "holds"),  # no norm is better than the norm without derivatives
        ((3.0, 3.3, 4.3), "opposite"),
        ((3.0, 3.2, 3.4), "no effect that matters"),
        ((3.0, 3.0, 3.4), "opposite"),
        ((3.0, 3.4, 99.0), "opposite"),  # worse than chance counts as chance
    ],
)
def test_the_judge_finds_what_was_planted(deep, outcome):
    assert STUDY.judge(planted(deep)).outcome.value == outcome


def test_the_effect_is_what_derivatives_bring_less_what_the_forward_pass_brings():
    verdict = STUDY.judge(planted((3.0, 3.25, 3.6)))
    assert verdict.effect.point == pytest.approx(0.25 - 0.35, abs=0.03)
    assert "3.25 with its statistics taken for constants" in verdict.reason
    assert standing(verdict) == "depends on the depth and the learning rate"
    assert "nats less" in answer(verdict)


def test_a_run_that_diverged_counts_as_chance():
    diverged = STUDY.judge(planted(lost={("none", 0.003)}))
    assert diverged.effect.n == 10
    assert diverged.effect.point == pytest.approx(0.3 - (CHANCE - 3.3), abs=0.03)


def test_at_own_best_rates_each_arm_has_its_own():
    # Without a norm the smaller rate is best, with it the larger.
    evidence = planted(deep=(3.5, 3.5, 3.0), best=(2.8, 2.9, 4.0))
    own = part(STUDY.judge(evidence), "own best rates")
    assert own.effect.point == pytest.approx((2.9 - 2.8) - (3.0 - 2.9), abs=0.03)
    forward = part(STUDY.judge(evidence), "forward, own best rates")
    assert forward.effect.point == pytest.approx(3.0 - 2.9, abs=0.03)


def test_weights_that_suit_a_network_without_a_norm_are_a_condition_of_their_own():
    found = part(STUDY.judge(planted(scaled=(3.0, 3.4, 3.1))), "scaled weights")
    assert found.outcome.value == "holds"
    assert found.effect.point == pytest.approx(0.4 + 0.3, abs=0.03)


def test_each_half_has_a_word_of_its_own():
    words = words_by_name(STUDY.judge(planted()))
    assert (words["cut, 2 blocks"], words["forward, 2 blocks"]) == ("holds", "holds")
    assert (words["cut, 1 blocks"], words["forward, 1 blocks"]) == ("holds", "opposite")
    assert words["variance or mean"] == "holds"
    assert words_by_name(STUDY.judge(planted(mean=3.2)))["variance or mean"] == "no effect that matters"


def test_arms_have_one_loss_at_the_start_but_the_arm_without_a_norm():
    """The forward pass does not know of the cuts, so the first loss is the same."""
    first = {}
    for arm, depth in {"layer": 1, "cut": 1, "none": 1, "cut-mean": 1, "cut-variance": 1}.items():
        first[arm] = values(cell_records(SLUG, arm, {"depth": depth, "lr": 0.003}), "loss", probe="training")[:2]
    assert first["cut"][0] == pytest.approx(first["layer"][0], rel=1e-5)
    assert first["cut"][0] == pytest.approx(first["cut-mean"][0], rel=1e-5)
    assert first["cut"][0] == pytest.approx(first["cut-variance"][0], rel=1e-5)
    assert first["cut"][0] != pytest.approx(first["none"][0], rel=1e-3)
