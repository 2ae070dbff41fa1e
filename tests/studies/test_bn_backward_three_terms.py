"""The backward pass: what is measured is what is there, and the judge finds what was planted."""

import dataclasses
import math

import numpy as np
import polars as pl
import pytest
import torch

from kit.planted_evidence import Plant, jitter, outcomes
from normscope import studies
from normscope.records import answer
from normscope.studies.lab import norms
from normscope.studies.lab.backward import errors_of_affine, errors_of_layer, measure, measure_affine
from normscope.studies.lab.data import load
from normscope.studies.lab.models import build

STUDY = studies.get("bn-backward-three-terms")
TRAINING = {"steps": 30, "batch": 64, "lrs": [0.1], "arms": ["full", "cut-both", "cut-mean", "cut-variance", "none"]}
SETTINGS = {"batches": [16, 64, 256], "judged": 64, "steps": 200, "lr": 0.1, "training": TRAINING}


def planted(error, *, exact=1e-15, cut=2.0, seeds=10):
    plant = Plant(SETTINGS, seeds)
    for seed in plant.seeds:
        of_affine = {
            "probe": "backward_terms",
            "site": "blocks.0.norm",
            "task": "gamma and beta",
            "batch": 64,
            "lr": 0.1,
        }
        for name, value in {"gamma_error": 1e-16, "beta_error": 1e-16, "beta_row_error": 0.97}.items():
            plant.add("full", seed, name, value, **of_affine)
        for batch in SETTINGS["batches"]:
            for step in (0, 200):
                for layer in range(3):
                    where = {"probe": "backward_terms", "site": f"blocks.{layer}.norm", "step": step}
                    where |= {"task": "formula", "batch": batch, "lr": 0.1}
                    value = (error(layer, batch) if callable(error) else error) * math.exp(jitter(seed, 0.05, layer))
                    plant.add("full", seed, "error", value, **where)
                    plant.add("full", seed, "weight_error", 3 * value, **where)
                    plant.add("full", seed, "full_error", exact, **where)
                    plant.add("full", seed, "norm_error", 1e-15, **where)
                    for name in ("cosine", "mean_share", "variance_share", "weight_cosine"):
                        plant.add("full", seed, name, 0.5, **where)
        for arm in TRAINING["arms"]:
            loss = 0.1 * (cut if arm == "cut-both" else 1.0) * math.exp(jitter(seed, 0.02, len(arm)))
            for step in range(30):
                plant.add(arm, seed, "loss", loss, step=step, task="training", batch=64, lr=0.1)
            plant.add(arm, seed, "diverged", 0, step=30, task="training", batch=64, lr=0.1)
            plant.add(arm, seed, "bias_max", 0.1, probe="parameters", step=29, task="training", batch=64, lr=0.1)
    return plant.evidence()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(0.18, "false"), (1e-15, "exact"), (lambda layer, batch: 0.5 if layer == 0 else 1e-15, "false")],
)
def test_a_formula_is_exact_or_false(error, outcome):
    verdict = STUDY.judge(planted(error))
    assert verdict.outcome.value == outcome
    assert verdict.p_value is None


def test_the_sentence_has_the_error_in_percent():
    assert "by 18 % of its length" in answer(STUDY.judge(planted(0.18)))


@pytest.mark.parametrize(("exact", "outcome"), [(1e-15, "exact"), (1e-3, "false")])
def test_the_full_formula_has_a_claim_of_its_own(exact, outcome):
    verdict = STUDY.judge(planted(0.18, exact=exact))
    assert verdict.outcome.value == "false"
    assert outcomes(verdict, "three terms together") == {outcome}


def test_of_gamma_and_beta_only_the_missing_sum_is_false():
    verdict = STUDY.judge(planted(0.18))
    words = {part.name: part.outcome.value for part in verdict.parts}
    assert [words[name] for name in ("gamma", "beta row", "beta")] == ["exact", "false", "exact"]


@pytest.mark.parametrize(("cut", "outcome"), [(2.0, "holds"), (1.0, "no effect that matters"), (0.5, "opposite")])
def test_harm_is_found_where_it_was_planted(cut, outcome):
    assert outcomes(STUDY.judge(planted(0.18, cut=cut)), "the mean and the variance for a constant") == {outcome}


@pytest.mark.parametrize(("factor", "outcome"), [(1.0, "holds"), (2.0, "opposite"), (0.5, "opposite")])
def test_theory_is_matched_or_not(factor, outcome):
    verdict = STUDY.judge(planted(lambda layer, m: factor * math.sqrt(2 / (m - 2))))
    assert outcomes(verdict, "over theory") == {outcome}


@pytest.mark.parametrize(("top", "outcome"), [(0.2, "opposite"), (0.001, "holds")])
def test_an_error_that_vanishes_in_large_batches_is_told_apart(top, outcome):
    verdict = STUDY.judge(planted(lambda layer, m: top if m == 256 else 0.18))
    assert outcomes(verdict, "vanishes in large batches") == {outcome}


def test_a_seed_without_numbers_makes_nothing_measurable():
    evidence = planted(0.18)
    kept = evidence.frame.filter((pl.col("seed") != 3) | (pl.col("probe") != "backward_terms"))
    verdict = STUDY.judge(dataclasses.replace(evidence, frame=kept))
    assert verdict.outcome.value == "not measurable"
    assert verdict.p_value is None


@pytest.mark.parametrize("m", [16, 64, 256])
def test_error_for_an_uninformative_gradient_is_that_of_theory(m):
    g = torch.Generator().manual_seed(m)
    draw = lambda: torch.randn(m, 4000, dtype=torch.float64, generator=g)  # noqa: E731
    found = errors_of_layer(3 + 2 * draw(), draw(), torch.full((4000,), 0.7, dtype=torch.float64), 1e-12)
    assert found["error"] == pytest.approx(math.sqrt(2 / (m - 2)), rel=0.03)
    assert found["mean_share"] + found["variance_share"] == pytest.approx(2 / m, rel=0.06)
    assert found["cosine"] == pytest.approx(math.sqrt(1 - found["mean_share"] - found["variance_share"]), rel=1e-9)
    assert max(found[name] for name in ("full_error", "norm_error")) < 1e-12
    assert found["difference_error"] < 1e-6


@pytest.mark.parametrize("shape", [(32, 5), (8, 5, 3, 3)])
def test_gradients_of_gamma_and_beta_are_the_sums_and_a_single_row_is_not(shape):
    g = torch.Generator().manual_seed(2)
    x, grad = (torch.randn(shape, dtype=torch.float64, generator=g) for _ in range(2))
    weight, bias = torch.linspace(0.2, 2, 5, dtype=torch.float64), torch.linspace(-1, 1, 5, dtype=torch.float64)
    found = errors_of_affine(x, grad + 0.5, weight, bias, 1e-5)
    assert max(found["gamma_error"], found["beta_error"]) < 1e-12
    # Every row is the sum less the other rows, which is nearly all of it.
    assert found["beta_row_error"] == pytest.approx(1, abs=0.2)


def test_a_batch_of_one_row_has_its_own_row_for_a_sum():
    x, grad = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[3.0, -1.0]]).double()
    ones = torch.full((2,), 0.7, dtype=torch.float64)
    assert errors_of_affine(x, grad, ones, ones, 0.1)["beta_row_error"] == 0


def test_a_wrong_formula_is_caught(monkeypatch):
    """The test of the test: with one term's sign turned the error is no longer at rounding."""
    from normscope import ops

    right = ops.batch_norm_backward_terms

    def wrong(*args, **options):
        terms = right(*args, **options)
        return terms._replace(mean_coupling=-terms.mean_coupling)

    monkeypatch.setattr(ops, "batch_norm_backward_terms", wrong)
    g = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(32, 5, dtype=torch.float64, generator=g) for _ in range(2))
    assert errors_of_layer(x, grad + 0.5, torch.ones(5, dtype=torch.float64), 1e-5)["full_error"] > 1e-3


def test_epsilon_is_taken_into_account():
    g = torch.Generator().manual_seed(1)
    x, grad = (torch.randn(8, 6, 3, 3, dtype=torch.float64, generator=g) for _ in range(2))
    found = errors_of_layer(x, grad + x, torch.linspace(0.2, 2, 6, dtype=torch.float64), 0.5)
    assert max(found[name] for name in ("full_error", "norm_error")) < 1e-12


def test_measuring_changes_neither_network():
    data = load("digits").split(0, train=100, dtype=torch.float64)
    make = lambda norm: build(  # noqa: E731
        "mlp", shape=(64,), classes=10, norm=norm, seed=0, depth=2, width=8
    ).double()
    model, note = make(norms.batch()), make(norms.detached(mean=True, variance=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    records = list(measure("c", 3, model, note, data, torch.arange(64)))
    records += measure_affine("c", model, data, torch.arange(64))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert {record.site for record in records} == {"blocks.0.norm", "blocks.1.norm"}
    assert np.isfinite([record.value for record in records]).all()


@pytest.mark.trains
def test_it_runs_as_a_whole(tmp_path, monkeypatch):
    tiny = {
        "network": {"name": "mlp", "depth": 2, "width": 8}, "batches": [16, 64], "judged": 64, "steps": 3, "lr": 0.1,
        "train": 200, "test": 50, "training": TRAINING | {"steps": 25, "batch": 32},
    }  # fmt: skip
    monkeypatch.setattr(type(STUDY), "PRESETS", {"quick": tiny})
    verdict = STUDY.run(out=tmp_path, seeds=2, workers=1)
    (run,) = studies.load(tmp_path)
    assert run.verdict() == verdict
    assert {figure.slug for figure in run.figures()} == {"error-by-batch", "loss-by-cut", "bias-drift"}
    assert len(run.tables()[0].rows) == 2 * 2 * 2
    against = {row[0]: [float(value) for value in row[1:]] for row in run.tables()[1].rows}
    assert set(against) == {"error, m=16", "error, m=64"}
    measured, theory, ratio = against["error, m=64"]
    assert theory == pytest.approx(math.sqrt(2 / 62), abs=1e-4)
    assert ratio == pytest.approx(measured / theory, rel=1e-2)
    drift = run.store.frame(probe="parameters", name="bias_max")
    last = drift.filter(drift["step"] == 24)
    sizes = {
        arm: last.filter(last["arm"] == arm)["value"].max() for arm in ("full", "cut-variance", "cut-mean", "cut-both")
    }
    assert max(sizes["full"], sizes["cut-variance"]) < 1e-7  # the exact gradient of a bias before batch norm is zero
    assert min(sizes["cut-mean"], sizes["cut-both"]) > 1e-4
