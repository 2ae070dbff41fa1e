"""Steps to a target: each arm at its own best rate, and never is counted as all."""

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings
from normscope import studies
from normscope.records import standing

SLUG = "fewer-iterations"
STUDY = studies.get(SLUG)


def planted(none=(100, 90), batch=(20, 25), *, ends=(0.95, 0.95)):
    """Steps of each arm at learning rates 0.5 (the same) and 2."""
    plant = Plant(settings(SLUG, lrs=[0.5, 2.0], networks=["sigmoid", "relu"], steps=120))
    for seed in plant.seeds:
        for net in plant.settings["networks"]:
            for arm, times, end in (("none", none, ends[0]), ("batch", batch, ends[1])):
                for rate, time in zip((0.5, 2.0), times, strict=True):
                    plant.reach(arm, seed, round(time + jitter(seed, 1, len(arm))), 120, net=net, lr=rate)
                    value = end + jitter(seed, 0.001, len(arm))
                    plant.add(arm, seed, "test_accuracy", value, step=120, net=net, lr=rate)
    return plant.evidence()


@pytest.mark.parametrize(
    ("none", "batch", "outcome"),
    [
        ((100, 90), (20, 25), "holds"),
        ((999, 999), (20, 25), "holds"),  # never gets there
        ((100, 20), (20, 25), "no effect that matters"),  # as fast at its own rate
        ((50, 50), (50, 50), "no effect that matters"),
        ((20, 25), (100, 90), "opposite"),
        ((999, 999), (999, 999), "not measurable"),
    ],
)
def test_the_judge_finds_what_was_planted(none, batch, outcome):
    assert STUDY.judge(planted(none, batch)).outcome.value == outcome


def test_a_claim_that_holds_at_one_rate_alone_depends_on_the_rate():
    verdict = STUDY.judge(planted((100, 20), (20, 25)))
    assert outcomes(verdict, "sigmoid network, learning rate 0.5") == {"holds"}
    assert standing(verdict) == "depends on the learning rate"


def test_runs_that_never_get_there_make_a_bound():
    verdict = STUDY.judge(planted((999, 999)))
    assert verdict.amount.startswith("at least 5.6")
    assert "never reached in 10 of 10 runs" in verdict.reason


@pytest.mark.parametrize(("ends", "outcome"), [((0.95, 0.95), "holds"), ((0.9, 0.95), "opposite")])
def test_accuracy_at_the_end_is_compared(ends, outcome):
    assert outcomes(STUDY.judge(planted(ends=ends)), "Test accuracy at the end") == {outcome}


@pytest.mark.trains
def test_a_sigmoid_network_is_fast_with_batch_norm_alone():
    more = {"network": {"name": "mlp", "depth": 3, "width": 40}, "steps": 60, "train": None}
    late = {}
    for arm in ("none", "batch"):
        records = cell_records(SLUG, arm, {"net": "sigmoid", "lr": 2.0}, **more)
        accuracies = [r.value for r in records if r.name == "accuracy"]
        late[arm] = sum(accuracies[-10:]) / 10
    assert late["batch"] > 0.7  # over ten seeds 0.89 to 0.96
    assert late["none"] < 0.5  # 0.17 to 0.30
