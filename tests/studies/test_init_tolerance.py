"""Scales of initial weights: decades are counted, speed is watched, and the law of c squared holds."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, part
from kit.small_studies import cell_records, settings, values
from normscope import studies

SLUG = "init-tolerance"
STUDY = studies.get(SLUG)
SCALES = [0.01, 0.1, 1.0, 10.0, 100.0]


def planted(none=(1.0, 1.0), batch=(0.01, 10.0), *, slow=1, pace=12, law=1e-12, lost=()):
    """``none`` and ``batch``: first and last scale that is usable."""
    plant = Plant(settings(SLUG, scales=SCALES, steps=60))
    for seed in plant.seeds:
        plant.add("law", seed, "difference", law, probe="law", scale=1.0)
        for arm, (low, high) in (("none", none), ("batch", batch)):
            for scale in SCALES:
                good = low <= scale <= high
                gone = (arm, scale) in lost
                goal = pace * (slow if scale == 10 else 1) + seed % 3 * (2 if scale == 10 else 1)
                plant.reach(arm, seed, goal if good else 999, 60, scale=scale)
                end = (0.99 - 0.01 * abs(math.log10(scale)) if good else 0.2) + jitter(
                    seed, 0.001, round(100 * scale) + len(arm)
                )
                plant.end(arm, seed, 0.9 + jitter(seed, 0.001), train=end, step=61, diverged=gone, scale=scale)
    return plant.evidence()


@pytest.mark.parametrize(
    ("none", "batch", "outcome"),
    [
        ((1, 1), (0.01, 10), "holds"),
        ((0.1, 10), (0.1, 10), "no effect that matters"),
        ((0.01, 10), (1, 1), "opposite"),
        ((1, 1), (1, 10), "holds"),  # one decade: no step of the grid lies on the margin
        ((0.01, 100), (0.01, 100), "not measurable"),  # the grid ends before either arm does
    ],
)
def test_the_judge_finds_what_was_planted(none, batch, outcome):
    assert STUDY.judge(planted(none, batch)).outcome.value == outcome


def test_a_scale_at_which_it_diverges_is_not_usable():
    assert STUDY.judge(planted(batch=(1, 100))).outcome.value == "holds"
    assert STUDY.judge(planted(batch=(1, 100), lost={("batch", 10.0)})).outcome.value == "no effect that matters"


def test_a_range_up_to_the_end_of_the_grid_is_a_bound():
    assert STUDY.judge(planted(batch=(0.1, 100))).amount.startswith("at least ")
    assert not STUDY.judge(planted(batch=(0.1, 10))).amount.startswith("at least ")


@pytest.mark.parametrize(("slow", "outcome"), [(1, "holds"), (4, "opposite")])
def test_the_strong_form_watches_the_speed(slow, outcome):
    assert part(STUDY.judge(planted(slow=slow)), "speed").outcome.value == outcome


def test_a_scale_that_never_gets_there_bounds_the_speed_and_is_never_taken_for_fast():
    bounded = part(STUDY.judge(planted(batch=(0.01, 1))), "speed")
    assert bounded.outcome.value == "opposite"  # at least 60 over 12 steps
    assert "at least" in bounded.finding
    assert part(STUDY.judge(planted(batch=(0.01, 1), pace=40)), "speed").outcome.value == "not measurable"


@pytest.mark.parametrize(("law", "outcome"), [(1e-12, "exact"), (1e-2, "false")])
def test_a_law_that_fails_is_found(law, outcome):
    assert part(STUDY.judge(planted(law=law)), "law").outcome.value == outcome


@pytest.mark.trains
def test_scaling_weights_by_c_and_their_rate_by_c_squared_changes_no_loss():
    assert values(cell_records(SLUG, "law", law_steps=20), "difference")[0] < 1e-9


@pytest.mark.trains
def test_the_law_is_not_empty():
    """The test of the test: with c in place of c squared the losses differ."""
    import torch

    sgd = torch.optim.SGD
    with pytest.MonkeyPatch.context() as patch:

        def wrong(groups, lr):
            return sgd([{**groups[0], "lr": lr * (groups[0]["lr"] / lr) ** 0.5}, groups[1]], lr=lr)

        patch.setattr(torch.optim, "SGD", wrong)
        assert values(cell_records(SLUG, "law", law_steps=20), "difference")[0] > 1e-3
