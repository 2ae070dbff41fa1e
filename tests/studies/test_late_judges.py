"""Planted evidence for the judges of lp norms, flat minima, high orders and normalizer-free networks."""

import pytest
from planted import Plant, jitter, outcomes
from small import settings

from normscope import studies


def lp(**factors):
    """Steps to the target in units of batch norm's."""
    made = settings("lp-normalisation", steps=400)
    plant = Plant(made)
    for seed in plant.seeds:
        for lr in made["lrs"]:
            for arm in ("none", "batch", "l1", "l2", "linf"):
                plant.reach(arm, seed, round(100 * factors.get(arm, 1) + jitter(seed, 2, len(arm))), 400, lr=lr)
                plant.end(arm, seed, 0.9 + jitter(seed, 0.001), step=401, train=1.0, lr=lr)
                plant.add(arm, seed, "spread", 1.2533, probe="lp", lr=lr)
    return plant.evidence()


@pytest.mark.parametrize(
    ("factors", "outcome"),
    [({}, "supported"), ({"linf": 2}, "refuted"), ({"l1": 0.5}, "refuted"), ({"l2": 1.2}, "inconclusive")],
)
def test_all_of_the_lp_norms_must_be_as_fast(factors, outcome):
    assert studies.get("lp-normalisation").judge(lp(**factors)).outcome.value == outcome


def flat(ratio, reached=1.0):
    made = settings("flat-minima")
    plant = Plant(made)
    for seed in plant.seeds:
        plant.add("law", seed, "error", 1e-12, probe="law", lr=made["lrs"][0], decay=0.0)
        for lr in made["lrs"]:
            for decay in made["decays"]:
                for arm, size in (("none", ratio), ("batch", 1.0)):
                    point = {"lr": lr, "decay": decay}
                    plant.add(arm, seed, "reached", reached, probe="minimum", **point)
                    plant.add(arm, seed, "test_accuracy", 0.9, probe="minimum", **point)
                    for name in ("layer_sharpness", "adaptive_sharpness", "top_eigenvalue", "trace"):
                        for mode in ("train", "frozen"):
                            value = size * (1 + jitter(seed, 0.02, len(arm)))
                            plant.add(arm, seed, f"{name}@{mode}", value, probe="curvature", **point)
    return studies.get("flat-minima").judge(plant.evidence())


@pytest.mark.parametrize(
    ("ratio", "outcome"), [(2, "supported"), (0.5, "refuted"), (1, "refuted"), (1.25, "inconclusive")]
)
def test_flatter_is_less_sharp_with_batch_norm(ratio, outcome):
    assert flat(ratio).outcome.value == outcome


def test_minima_whose_loss_was_not_reached_do_not_count():
    assert flat(2, reached=0).outcome.value == "inconclusive"


def orders(*ratios):
    """Ratios without over with batch norm at the two scales."""
    made = settings("high-order-effects")
    plant = Plant(made)
    for seed in plant.seeds:
        plant.add("chain", seed, "error", 1e-14, probe="chain", scale=1.0)
        for scale, factor in zip(made["scales"], ratios, strict=True):
            for arm, size in (("none", factor), ("batch", 1.0), ("last", 1.0)):
                for name in ("interaction_size", "remainder", "third_order"):
                    for c in made["decreases"]:
                        value = 0.1 * size * (1 + jitter(seed, 0.03, len(arm)))
                        plant.add(arm, seed, f"{name}@c={c:g}", value, probe="interaction", scale=scale)
    return plant.evidence()


@pytest.mark.parametrize(
    ("ratios", "outcome"),
    [((4, 4), "supported"), ((4, 1), "refuted"), ((0.25, 0.25), "refuted"), ((2, 4), "inconclusive")],
)
def test_interactions_must_be_fewer_at_both_scales(ratios, outcome):
    assert studies.get("high-order-effects").judge(orders(*ratios)).outcome.value == outcome


def free(share=1.0, accuracy=0.0):
    """``share`` of batch norm's gain that competitors recover, and how much more accurate they end."""
    slug = "normaliser-free-competitors"
    made = settings(slug, steps=20)
    plant = Plant(made)
    for seed in plant.seeds:
        for arm in ("none", "batch", "layer", "group", "fixup", "skipinit", "rezero", "nf"):
            for lr in made["plain_lrs" if arm == "none" else "lrs"]:
                mean = {"none": 0.2, "batch": 0.8}.get(arm, 0.2 + 0.6 * share) + jitter(seed, 0.005, len(arm))
                for step in range(20):
                    plant.add(arm, seed, "accuracy", mean, step=step, lr=lr)
                test = 0.9 + jitter(seed, 0.001, len(arm)) + (0 if arm in ("none", "batch") else accuracy)
                for name, value in {"test_accuracy": test, "val_loss": 0.5, "diverged": 0}.items():
                    plant.add(arm, seed, name, value, step=20, lr=lr)
                for block in range(made["network"]["depth"] + 1):
                    plant.add(arm, seed, "mean_square", 1 + jitter(seed, 0.01), probe="signal", step=block, lr=lr)
    return studies.get(slug).judge(plant.evidence())


@pytest.mark.parametrize(
    ("share", "accuracy", "outcome"),
    [(1, 0, "supported"), (0.3, 0, "refuted"), (-1, 0, "refuted"), (1, -0.05, "refuted"), (0.8, 0, "inconclusive")],
)
def test_a_competitor_must_recover_speed_and_accuracy(share, accuracy, outcome):
    assert free(share, accuracy).outcome.value == outcome


def test_a_stream_that_is_not_that_of_theory_is_found():
    verdict = free()
    assert outcomes(verdict, "Fixup over expected") == {"supported"}
    assert outcomes(verdict, "batch norm over expected") == {"refuted"}
