"""Scales of initial weights: decades are counted, speed is watched, and the law of c squared holds."""

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies

SLUG = "init-tolerance"
STUDY = studies.get(SLUG)
SCALES = [0.01, 0.1, 1.0, 10.0, 100.0]


def planted(none=(1.0, 1.0), batch=(0.01, 10.0), *, slow=1, law=1e-12, lost=()):
    """``none`` and ``batch``: first and last scale that is usable."""
    plant = Plant(settings(SLUG, scales=SCALES, steps=60))
    for seed in plant.seeds:
        plant.add("law", seed, "difference", law, probe="law", scale=1.0)
        for arm, (low, high) in (("none", none), ("batch", batch)):
            for scale in SCALES:
                good = low <= scale <= high
                gone = (arm, scale) in lost
                plant.reach(arm, seed, (12 * (slow if scale == 10 else 1)) if good else 999, 60, scale=scale)
                plant.end(arm, seed, 0.9 + jitter(seed, 0.001), train=float(good), step=61, diverged=gone, scale=scale)
    return plant.evidence()


@pytest.mark.parametrize(
    ("none", "batch", "outcome"),
    [
        ((1, 1), (0.01, 10), "supported"),
        ((0.1, 10), (0.1, 10), "refuted"),
        ((0.01, 10), (1, 1), "refuted"),  # the other way round
        ((1, 1), (1, 10), "inconclusive"),  # one decade: at the margin
    ],
)
def test_the_judge_finds_what_was_planted(none, batch, outcome):
    assert STUDY.judge(planted(none, batch)).outcome.value == outcome


def test_a_scale_at_which_it_diverges_is_not_usable():
    assert STUDY.judge(planted(batch=(1, 100), lost={("batch", 10.0)})).outcome.value == "refuted"


@pytest.mark.parametrize(("slow", "outcome"), [(1, "supported"), (4, "refuted")])
def test_the_strong_form_watches_the_speed(slow, outcome):
    assert outcomes(STUDY.judge(planted(slow=slow)), "slowest to the fastest") == {outcome}


@pytest.mark.parametrize(("law", "outcome"), [(1e-12, "supported"), (1e-2, "refuted")])
def test_a_law_that_fails_is_found(law, outcome):
    assert outcomes(STUDY.judge(planted(law=law)), "changes no loss") == {outcome}


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
