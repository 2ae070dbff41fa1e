"""The stream by block: the judge tells lines from exponentials, deep from early, and what the scaling does."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, part, words_by_name
from kit.small_studies import cell_records, settings
from normscope import studies

SLUG = "pre-ln-depth-curse"
STUDY = studies.get(SLUG)
BLOCKS = 12


def planted(variance=lambda block: 1 + block, angle=lambda block: 60 / math.sqrt(block), **others):
    """Variance and angle of block 1 to 12, of every arm; ``others`` are those of one arm, or worth and losses."""
    plant = Plant(settings(SLUG, network={"width": 8, "blocks": BLOCKS, "heads": 2}))
    worth = others.get("worth", lambda block: 0.1 / block)
    for seed in plant.seeds:
        for salt, arm in enumerate(STUDY.ARMS):
            of_variance, of_angle = others.get(arm, (variance, angle))
            for step in (0, plant.settings["steps"]):
                for block in range(1, BLOCKS + 1):
                    where = {"probe": "stream", "site": f"blocks.{block - 1}", "step": step}
                    noise = math.exp(jitter(seed, 0.005, salt))
                    plant.add(
                        arm, seed, "variance", of_variance(block) * noise * math.exp(jitter(seed, 3e-3, block)), **where
                    )
                    plant.add(
                        arm, seed, "angle", of_angle(block) * noise * math.exp(jitter(seed, 0.01, block)), **where
                    )
                    if step:
                        plant.add(arm, seed, "worth", worth(block) + jitter(seed, 1e-3, block), **where)
            plant.add(arm, seed, "loss", 4.5, probe="chance")
            loss = others.get("losses", {}).get(arm, 2.9) + jitter(seed, 0.005, salt)
            plant.end(arm, seed, test_loss=loss, step=plant.settings["steps"])
    return plant.evidence()


@pytest.mark.parametrize(
    ("angle", "outcome"),
    [
        (lambda block: 60 / block, "holds"),
        (lambda block: 20, "no effect that matters"),
        (lambda block: 2 * block, "opposite"),
    ],
)
def test_deep_blocks_near_the_identity_are_found(angle, outcome):
    words = words_by_name(STUDY.judge(planted(angle=angle)))
    assert {words[f"angle, {name}"] for name in ("trained", "start", "scaled initialization")} == {outcome}


def test_the_effect_is_the_ratio_of_geometric_means_over_thirds():
    verdict = STUDY.judge(planted(angle=lambda block: 60 / block))
    wanted = math.log((9 * 10 * 11 * 12) / (1 * 2 * 3 * 4)) / 4
    assert verdict.effect.point == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize(
    ("variance", "grows", "exponential", "line"),
    [
        (lambda block: 1.4**block, "holds", "holds", "opposite"),
        (lambda block: 1 + 2 * block, "holds", "opposite", "holds"),
        (lambda block: 1 + block**2, "holds", "opposite", "opposite"),  # between the two
        (lambda block: 1.0, "no effect that matters", "holds", "not measurable"),
    ],
)
def test_growth_and_its_kind_are_told_apart(variance, grows, exponential, line):
    words = words_by_name(STUDY.judge(planted(variance)))
    assert words["variance, trained"] == words["variance, start"] == grows
    assert words["exponential, trained"] == words["exponential, start"] == exponential
    if line != "not measurable":
        assert words["along a line, trained"] == line


@pytest.mark.parametrize(("exponent", "outcome"), [(-1.0, "holds"), (0.0, "no effect that matters")])
def test_deep_blocks_that_are_worth_less_are_found(exponent, outcome):
    words = words_by_name(STUDY.judge(planted(worth=lambda block: 0.1 * block**exponent)))
    assert words["worth"] == outcome


def test_what_the_scaling_does_is_judged_by_itself():
    """It slows the growth, and may make deep blocks more like the identity all the same."""
    slower = (lambda block: 1 + math.log(block), lambda block: 60 / block)
    verdict = STUDY.judge(planted(scaled=slower, losses={"pre": 2.95, "scaled": 2.85}))
    words = words_by_name(verdict)
    assert words["scaling, variance, trained"] == "holds"
    assert words["scaling, angle, trained"] == "opposite"
    assert words["scaling, loss"] == "holds"
    assert part(verdict, "scaling, loss").effect.point == pytest.approx(0.1, abs=0.01)
    same = words_by_name(STUDY.judge(planted()))
    assert same["scaling, variance, start"] == same["scaling, angle, start"] == "no effect that matters"


def test_post_norm_is_compared_at_deep_blocks():
    post = (lambda block: 1.0, lambda block: 40.0)
    assert words_by_name(STUDY.judge(planted(post=post)))["post-norm"] == "holds"


def test_arms_differ_in_what_their_words_say():
    """At the start: the scaling divides what a block adds, and the other weights make it add less."""
    variances = {}
    for arm in STUDY.ARMS:
        records = [r for r in cell_records(SLUG, arm) if r.name == "variance" and r.step == 0]
        variances[arm] = [record.value for record in records]
        assert len(records) == 3
    assert variances["scaled"][0] == pytest.approx(variances["pre"][0], rel=1e-5)  # the first block is not scaled
    assert variances["scaled"][2] < variances["pre"][2]
    assert variances["post"] == pytest.approx([1, 1, 1], abs=0.01)
    assert all(small < large for small, large in zip(variances["small"], variances["pre"], strict=True))
    assert variances["small"][2] - variances["small"][0] < 0.5 * (variances["pre"][2] - variances["pre"][0])
