"""A bias before batch norm: no gradient, no difference; and the judge would see either."""

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.claims.bias_before_bn_redundant import OPTIMIZERS

SLUG = "bias-before-bn-redundant"
STUDY = studies.get(SLUG)


def planted(ratio=1e-15, *, apart=1e-15, drifts=(1e-9, 1e-9, 1e-3)):
    plant = Plant(settings(SLUG))
    for seed in plant.seeds:
        for arm in STUDY.ARMS:
            for step in range(3):
                loss = 0.5 + (apart if arm == "bias" and step == 1 else 0)
                plant.add(arm, seed, "loss", loss, step=step, optimizer="sgd", bits=64)
        plant.add("bias", seed, "ratio", ratio, probe="bias", step=24, optimizer="sgd", bits=64)
        for salt, (name, drift) in enumerate(zip(OPTIMIZERS, drifts, strict=True)):
            value = drift * (1 + jitter(seed, 0.05, salt))
            plant.add("bias", seed, "drift", value, probe="bias", step=20, optimizer=name, bits=32)
    return plant.evidence()


@pytest.mark.parametrize(("ratio", "outcome"), [(1e-15, "exact"), (1e-6, "false"), (float("nan"), "not measurable")])
def test_the_judge_finds_what_was_planted(ratio, outcome):
    assert STUDY.judge(planted(ratio)).outcome.value == outcome


def test_runs_that_differ_at_one_step_are_found():
    assert outcomes(STUDY.judge(planted()), "same losses") == {"exact"}
    assert outcomes(STUDY.judge(planted(apart=1e-4)), "same losses") == {"false"}


def test_a_run_that_ended_early_has_no_difference_to_measure():
    evidence = planted()
    frame = evidence.frame
    kept = frame.filter((frame["arm"] != "bias") | (frame["name"] != "loss") | (frame["step"] < 2))
    verdict = STUDY.judge(type(evidence)(kept, evidence.settings, evidence.seeds))
    assert outcomes(verdict, "same losses") == {"not measurable"}


@pytest.mark.parametrize(
    ("drifts", "outcome"),
    [
        ((1e-9, 1e-9, 1e-3), "holds"),
        ((1e-3, 1e-9, 1e-9), "opposite"),
        ((1e-9, 1e-3, 1e-9), "no effect that matters"),
    ],
)
def test_drift_is_that_of_adam(drifts, outcome):
    assert outcomes(STUDY.judge(planted(drifts=drifts)), "Adam over SGD") == {outcome}


@pytest.mark.trains
def test_a_bias_before_batch_norm_gets_no_gradient_and_makes_no_difference():
    where = {"optimizer": "sgd", "bits": 64}
    with_, without = (cell_records(SLUG, arm, where) for arm in STUDY.ARMS)
    assert values(with_, "ratio")[0] < 1e-12
    assert values(with_, "loss") == pytest.approx(values(without, "loss"), abs=1e-9)


@pytest.mark.trains
def test_in_float32_adam_moves_what_sgd_leaves():
    drift = {
        name: values(cell_records(SLUG, "bias", {"optimizer": name, "bits": 32}), "drift")[-1] for name in OPTIMIZERS
    }
    assert drift["sgd"] < 1e-7
    assert drift["adam"] > 100 * drift["sgd"]
