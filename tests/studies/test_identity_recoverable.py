"""The identity: the judge tells noise of 1.5/m from none, and a cell finds what theory says."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.claims.identity_recoverable import KINDS

SLUG = "identity-recoverable"
STUDY = studies.get(SLUG)


def planted(error=None, *, evaluated=1e-8, away=0.6, change=1e-7, bent=(1e-16, 0.41)):
    plant = Plant(settings(SLUG))
    for seed in plant.seeds:
        for kind, rho in KINDS.items():
            value = (1 + (rho + 2) / 4 if error is None else error) * (1 + jitter(seed, 0.01))
            for m in plant.settings["batches"]:
                found = {"error_times_m": value, "eval_error": evaluated}
                found |= {"nonlinear_eval": bent[0], "nonlinear_train": bent[1] + jitter(seed, 0.001)}
                for name, number in found.items():
                    plant.add(kind, seed, name, number, probe="identity", m=m)
        for arm in ("trained", "inserted"):
            for name in ("gamma_away", "beta_away", "gamma_moved"):
                plant.add(arm, seed, name, away + jitter(seed, 0.01), probe="identity", m=0)
            plant.add(arm, seed, "loss_change", change, probe="identity", m=0)
    return plant.evidence()


@pytest.mark.parametrize(
    ("error", "outcome"), [(None, "refuted"), (1.5, "refuted"), (0.01, "supported"), (0.5, "inconclusive")]
)
def test_the_judge_finds_what_was_planted(error, outcome):
    assert STUDY.judge(planted(error)).outcome.value == outcome


def test_theory_is_matched_or_not():
    assert outcomes(STUDY.judge(planted()), "minus theory") == {"supported"}
    assert "refuted" in outcomes(STUDY.judge(planted(1.5)), "minus theory, laplace")


@pytest.mark.parametrize(("away", "outcome"), [(0.6, "supported"), (0.15, "inconclusive"), (0.03, "refuted")])
def test_two_thresholds_say_whether_gamma_goes_there(away, outcome):
    assert outcomes(STUDY.judge(planted(away=away)), "after training") == {outcome}


@pytest.mark.parametrize("broken", [{"evaluated": 1e-3}, {"change": 0.1}, {"bent": (1e-3, 0.41)}])
def test_what_should_be_exact_and_is_not_is_found(broken):
    words = {"evaluated": "float32", "change": "loss in eval mode", "bent": "eval mode"}[next(iter(broken))]
    assert "refuted" in outcomes(STUDY.judge(planted(**broken)), words)


@pytest.mark.parametrize(("kind", "rel"), [("normal", 0.05), ("uniform", 0.05), ("laplace", 0.1)])
def test_noise_in_training_is_that_of_theory(kind, rel):
    records = cell_records(SLUG, kind, {"m": 64}, draws=8000)
    (error,) = values(records, "error_times_m")
    assert error == pytest.approx(1 + (KINDS[kind] + 2) / 4, rel=rel)
    assert values(records, "eval_error")[0] < 1e-6
    assert values(records, "nonlinear_eval")[0] < 1e-12
    assert values(records, "nonlinear_train")[0] == pytest.approx(math.sqrt(2) - 1, rel=0.08)  # heavy tails: some more


@pytest.mark.trains
def test_batch_norm_put_in_at_the_identity_changes_no_evaluation():
    assert values(cell_records(SLUG, "inserted"), "loss_change")[0] < 1e-4
