"""The terms of layer norm and RMS norm: the judge tells exact from false, and an error from that of theory."""

import math
import re

import pytest

from kit.planted_evidence import Plant, jitter, outcomes, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.records import answer
from normscope.studies.lab.feature_terms import expected_error

SLUG = "ln-backward-terms"
STUDY = studies.get(SLUG)


def planted(*, full=1e-15, outer=0.3, off=1.0, arriving=1.0, few=1.0):
    """Errors that are those of theory times a factor, on random tokens (off) and in a network (arriving, few)."""
    plant = Plant(settings(SLUG))
    widths, width = plant.settings["widths"], plant.settings["network"]["width"]
    for seed in plant.seeds:
        for arm in STUDY.ARMS:
            for at in widths:
                where = {"probe": "token_terms", "task": "random tokens", "width": at}
                error = off * expected_error(arm, at) * math.exp(jitter(seed, 0.01, at))
                for name, value in {"error": error, "full_error": full, "outer_error": outer}.items():
                    plant.add(arm, seed, name, value, **where)
                plant.add(arm, seed, "gamma_error", 1e-16, **where)
                plant.add(arm, seed, "beta_error", 1e-16, **where)
            for step in (0, plant.settings["steps"]):
                for site in ("blocks.0.attention_norm", "norm"):
                    where = {"probe": "token_terms", "task": "a transformer", "width": width, "step": step}
                    error = arriving * expected_error(arm, width) * math.exp(jitter(seed, 0.03, step))
                    plant.add(arm, seed, "error", error, site=site, **where)
                    plant.add(arm, seed, "error_few", few * error * math.exp(jitter(seed, 0.02, 7)), site=site, **where)
                    plant.add(arm, seed, "full_error", full, site=site, **where)
    return plant.evidence()


@pytest.mark.parametrize(("full", "outcome"), [(1e-15, "exact"), (1e-6, "false")])
def test_the_terms_are_exact_or_false(full, outcome):
    verdict = STUDY.judge(planted(full=full))
    assert verdict.outcome.value == outcome
    assert words_by_name(verdict)["two terms"] == outcome


def test_the_rescaling_alone_is_false_with_its_error_in_percent():
    verdict = STUDY.judge(planted())
    alone = [part for part in verdict.parts if part.name.startswith("rescaling alone")]
    assert {part.outcome.value for part in alone} == {"false"}
    said = [float(re.search(r"misses ([\d.]+) %", answer(part)).group(1)) for part in alone]
    assert said == pytest.approx([57.7, 37.8], rel=0.03)  # 8 features: sqrt(2/6) and sqrt(1/7)
    assert {words_by_name(verdict)[name] for name in ("gamma", "beta")} == {"exact"}


@pytest.mark.parametrize(("outer", "outcome"), [(0.3, "false"), (1e-14, "exact")])
def test_the_gain_in_front_of_the_means_is_judged(outer, outcome):
    assert words_by_name(STUDY.judge(planted(outer=outer)))["gain in front"] == outcome


@pytest.mark.parametrize(("off", "outcome"), [(1.0, "holds"), (1.2, "opposite"), (0.8, "opposite")])
def test_theory_is_matched_or_not(off, outcome):
    assert outcomes(STUDY.judge(planted(off=off)), "as much as theory says") == {outcome}


@pytest.mark.parametrize(("arriving", "outcome"), [(1.0, "holds"), (1.5, "opposite"), (0.5, "opposite")])
def test_gradients_that_know_of_the_token_are_told_from_random_ones(arriving, outcome):
    assert outcomes(STUDY.judge(planted(arriving=arriving)), "as little of the token") == {outcome}


@pytest.mark.parametrize(("few", "outcome"), [(1.0, "holds"), (2.0, "opposite")])
def test_an_error_that_falls_with_the_number_of_tokens_is_found(few, outcome):
    assert outcomes(STUDY.judge(planted(few=few)), "number of tokens") == {outcome}


def test_a_network_is_measured_at_each_norm_before_and_after_training():
    records = cell_records(SLUG, "rms", {"task": "a transformer"})
    sites = {record.site for record in records if record.probe == "token_terms"}
    assert sites == {f"blocks.{i}.{part}_norm" for i in (0, 1) for part in ("attention", "feedforward")} | {"norm"}
    assert {record.step for record in records if record.name == "error_few"} == {0, 3}
    assert max(values(records, "full_error")) < 1e-12
    assert set(values(records, "mean_share")) == {0}
    assert min(values(records, "error")) > 0.01
