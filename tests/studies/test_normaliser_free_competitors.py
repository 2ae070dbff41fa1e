"""Planted evidence for the judge of normalizer-free networks."""

import pytest

from kit.planted_evidence import Plant, jitter, part
from kit.small_studies import settings
from normscope import studies
from normscope.records import standing


def free(share=1.0, accuracy=0.0, *, gain=0.6, rezero=None):
    """``share`` of batch norm's ``gain`` that competitors recover (ReZero its own), how much more accurate they end."""
    slug = "normaliser-free-competitors"
    made = settings(slug, steps=20)
    plant = Plant(made)
    plant.chance()
    for seed in plant.seeds:
        for salt, arm in enumerate(studies.get(slug).ARMS):
            for lr in made["plain_lrs" if arm == "none" else "lrs"]:
                own = rezero if arm == "rezero" and rezero is not None else share
                mean = 0.2 + gain * {"none": 0, "batch": 1}.get(arm, own) + jitter(seed, 0.005, salt)
                for step in range(20):
                    plant.add(arm, seed, "accuracy", mean, step=step, lr=lr)
                test = 0.9 + jitter(seed, 0.001, salt) + (0 if arm in ("none", "batch") else accuracy)
                for name, value in {"test_accuracy": test, "val_loss": 0.5, "diverged": 0}.items():
                    plant.add(arm, seed, name, value, step=20, lr=lr)
                for block in range(made["network"]["depth"] + 1):
                    plant.add(arm, seed, "mean_square", 1 + jitter(seed, 0.01), probe="signal", step=block, lr=lr)
    return studies.get(slug).judge(plant.evidence())


@pytest.mark.parametrize(
    ("share", "outcome"),
    [
        (1, "holds"),
        (1.5, "holds"),
        (0.3, "opposite"),
        (-1, "opposite"),
        (0.8, "unclear"),
    ],  # better never counts against
)
def test_a_competitor_must_recover_the_gain(share, outcome):
    assert free(share).outcome.value == outcome


def test_each_competitor_is_judged_by_itself():
    verdict = free(1, rezero=0.3)
    assert verdict.outcome.value == part(verdict, "skipinit").outcome.value == "holds"
    assert part(verdict, "rezero").outcome.value == "opposite"
    assert standing(verdict) == "depends on the scheme"


def test_where_batch_norm_gains_nothing_there_is_nothing_to_share():
    verdict = free(1, gain=0.0)
    assert verdict.outcome.value == "not measurable"
    assert "a premise is not met: Batch norm gains over He's weights alone" in verdict.why


@pytest.mark.parametrize(("accuracy", "outcome"), [(0, "holds"), (0.05, "holds"), (-0.05, "opposite")])
def test_accuracy_is_a_claim_of_its_own(accuracy, outcome):
    verdict = free(1, accuracy)
    assert part(verdict, "accuracy, fixup").outcome.value == outcome
    assert verdict.outcome.value == "holds"


def test_a_stream_that_is_not_that_of_theory_is_found():
    verdict = free()  # its mean square is 1, to a percent
    assert part(verdict, "stream, nf").outcome.value == "holds"
    assert part(verdict, "stream, batch").outcome.value == "opposite"
    assert part(verdict, "stream, fixup").outcome.value == "false"  # a percent is no rounding
