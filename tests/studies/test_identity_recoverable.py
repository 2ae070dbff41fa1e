"""The identity: exact over the population, noise of 1.5/m in training, and a cell finds what theory says."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, outcomes, parts
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


@pytest.mark.parametrize(("evaluated", "outcome"), [(1e-8, "exact"), (1e-3, "false")])
def test_the_judge_finds_the_identity_over_the_population(evaluated, outcome):
    assert STUDY.judge(planted(evaluated=evaluated)).outcome.value == outcome


@pytest.mark.parametrize(("error", "outcome"), [(None, "false"), (1.5, "false"), (1e-14, "exact")])
def test_noise_that_is_left_in_training_is_another_claim(error, outcome):
    verdict = STUDY.judge(planted(error))
    assert verdict.outcome.value == "exact"
    assert outcomes(verdict, "In training, too") == {outcome}


def test_what_is_left_is_said_in_percent_of_sigma():
    (part,) = parts(STUDY.judge(planted(1.5)), "In training, too")
    assert 100 * part.effect.point == pytest.approx(100 * math.sqrt(1.5 / 64), rel=0.05)
    assert "% of sigma" in part.finding


def test_theory_is_matched_or_not():
    assert outcomes(STUDY.judge(planted()), "over theory") == {"holds"}
    assert outcomes(STUDY.judge(planted(1.5)), "over theory, laplace") == {"opposite"}


@pytest.mark.parametrize(("away", "outcome"), [(0.6, "holds"), (0.2, "unclear"), (0.03, "no effect that matters")])
def test_gammas_that_stay_away_are_told_from_gammas_that_go_there(away, outcome):
    assert outcomes(STUDY.judge(planted(away=away)), "stay away") == {outcome}


@pytest.mark.parametrize(
    ("broken", "words"), [({"change": 0.1}, "loss in eval mode"), ({"bent": (1e-3, 0.41)}, "eval mode, normal data")]
)
def test_what_should_be_exact_and_is_not_is_found(broken, words):
    assert outcomes(STUDY.judge(planted()), words) == {"exact"}
    assert outcomes(STUDY.judge(planted(**broken)), words) == {"false"}


@pytest.mark.parametrize(("bent", "outcome"), [(0.41, "holds"), (0.02, "no effect that matters")])
def test_a_bend_in_training_is_found(bent, outcome):
    assert outcomes(STUDY.judge(planted(bent=(1e-16, bent))), "train mode, normal data") == {outcome}


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
