"""Planted records give the sentence with the right layer and number; healthy records give none."""

import math
import re

import pytest
from hypothesis import given, settings, strategies as st

from kit.planted_records import records, seen_of, sentences
from normscope import probes, seen
from normscope.probes import Urgency

LAYERS = [f"block{number}.fc1" for number in range(1, 13)]
NORMS = [f"layer{number}.bn2" for number in range(1, 5)]


def all_but(sites, usual, **odd):
    """Give every site its usual value, and a few their own; a double underscore in a name stands for a point."""
    own = {name.replace("__", "."): value for name, value in odd.items()}
    return {site: own.get(site, usual) for site in sites}


def growing(factor, layers=LAYERS):
    """Gradients whose square grows by a factor a layer toward the input."""
    return {
        "output_norm": {site: 1e-3 * factor ** (0.5 * (len(layers) - 1 - i)) for i, site in enumerate(layers)},
        "norm": dict.fromkeys(layers, 0.1),
        "growth": {"": factor},
    }


NORM_AND_RELU = {"block1": "Block", "block1.bn": "BatchNorm1d", "block1.act": "ReLU"} | dict.fromkeys(LAYERS, "Linear")

PLANTED = {
    "dead units": (
        "saturation",
        {"dead_share": all_but(LAYERS, 0.0, block3__fc1=[0.0, 0.1, 0.3, 0.41])},
        "41 % of the units of `block3.fc1` are never active, from 0 % at step 0.",
    ),
    "dead units in many layers": (
        "saturation",
        {"dead_share": {site: 0.1 + 0.01 * i if i % 2 else 0.0 for i, site in enumerate(LAYERS)}},
        "In 6 of 12 activations units are never active, most in `block12.fc1`: 21 % of them.",
    ),
    "saturated": (
        "saturation",
        {"output_tail": {"tanh": 0.6}},
        "`tanh` is saturated: 60 % of its outputs lie at an end of their range.",
    ),
    "lagging mean": (
        "statistics_gap",
        {"mean_gap": all_but(NORMS, 0.1, layer4__bn2=3.0), "variance_gap": dict.fromkeys(NORMS, 0.1)},
        "The running mean of `layer4.bn2` lags behind the batch by 3 sigma.",
    ),
    "lagging variance": (
        "statistics_gap",
        {"mean_gap": dict.fromkeys(NORMS, 0.1), "variance_gap": all_but(NORMS, 0.1, layer2__bn2=math.log(4))},
        "The running variance of `layer2.bn2` is off from the batch's by a factor of 4.",
    ),
    "eval mode": (
        "statistics_gap",
        {"train_loss": {"": 2.0}, "eval_loss": {"": 3.2}, "statistics_share": {"": 0.95}},
        "In eval mode the loss of the same batch is 3.2, in train mode 2; running statistics make 95 % of the "
        "difference.",
    ),
    "exploding gradients": (
        "gradient_flow",
        growing(3.0),
        "Gradients grow 3 times a layer toward the input (squared, from `block12.fc1` to `block1.fc1`): 177,000 times "
        "over 12 layers.",
    ),
    "vanishing gradients": (
        "gradient_flow",
        growing(0.25),
        "Gradients shrink 4 times a layer toward the input (squared, from `block12.fc1` to `block1.fc1`): 4.2e6 times "
        "over 12 layers.",
    ),
    "no gradient": (
        "gradient_flow",
        growing(1.0) | {"norm": all_but(LAYERS, 0.1, block2__fc1=0.0)},
        "No gradient reaches `block2.fc1` (1 of 12 layers).",
    ),
    "gradient not finite": (
        "gradient_flow",
        growing(1.0) | {"norm": all_but(LAYERS, 0.1, block2__fc1=[0.1, 0.1, math.inf, math.nan])},
        "The gradient of `block2.fc1` is not finite, first at step 20.",
    ),
    "fast": (
        "update_ratio",
        {"update_ratio": all_but(LAYERS, 1e-3, block1__fc1=0.071)},
        "Updates change the weights of `block1.fc1` by 7.1 % a step; the rule of thumb is 0.1 %.",
    ),
    "wide": (
        "activation_distribution",
        {"std": all_but(LAYERS, 1.0, block11__fc1=[1, 5, 50, 250.0]), "mean": dict.fromkeys(LAYERS, 0.0)},
        "The outputs of `block11.fc1` spread 250 times as wide as at step 0.",
    ),
    "aside": (
        "activation_distribution",
        {"std": dict.fromkeys(LAYERS, 1.0), "mean": all_but(LAYERS, 0.0, block7__fc1=-5.0)},
        "The outputs of `block7.fc1` lie 5 standard deviations to one side of zero.",
    ),
    "gain gone": (
        "affine_drift",
        {"weight_mean": all_but(NORMS, 1.0, layer1__bn2=[1.0, 0.5, 0.1, 0.02])},
        "The gain of `layer1.bn2` has shrunk to 0.02, from 1 at step 0: the layer is nearly switched off.",
    ),
    "idle block": (
        "residual_stream",
        {"cosine": all_but(LAYERS, 0.9, block7__fc1=0.997)},
        "`block7.fc1` passes on what it reads: the cosine of its input and output is 1 to two digits.",
    ),
    "offset stream": (
        "residual_stream",
        {"mean_share": all_but(LAYERS, 0.02, block7__fc1=0.6)},
        "Of the stream behind `block7.fc1` the mean over the features is 0.6: RMS norm keeps it.",
    ),
    "tokens in the batch": (
        "residual_stream",
        {"unread@positions": {"fc": 1.0}},
        "1 block is not read by position (`fc`): its tokens do not lie along an axis of their own: pooled, or "
        "flattened into the batch.",
    ),
    "variance term": (
        "batch_norm_gradient_terms",
        {"variance_share": all_but(NORMS, 0.01, layer3__bn2=0.63)},
        "The variance term of `layer3.bn2` takes 63 % of the gradient's energy out.",
    ),
    "noisy statistics": (
        "statistics_noise",
        {"mean_noise": all_but(NORMS, 0.001, layer3__bn2=0.09)},
        "The batch mean of `layer3.bn2` wavers by 0.3 sigma from batch to batch.",
    ),
    "spinning": (
        "scale_invariance",
        {"angle": all_but(LAYERS, 0.01, block5__fc1=0.4)},
        "The weight of `block5.fc1` turns by 0.4 radians a step.",
    ),
    "effective learning rate": (
        "scale_invariance",
        {"effective_lr": all_but(LAYERS, 0.01, block5__fc1=[0.02, 0.01, 0.004, 0.002])},
        "The effective learning rate of `block5.fc1` has fallen from 0.02 to 0.002.",
    ),
    "shifted gradient": (
        "covariate_shift",
        {"relative": all_but(LAYERS, 0.1, block9__fc1=0.8), "cosine": dict.fromkeys(LAYERS, 0.9)},
        "The update of the layers before `block9.fc1` shifts its gradient by 80 % of its length.",
    ),
    "sharper": (
        "curvature",
        {"top_eigenvalue@train": {"": [5.1, 10, 20, 38.0]}},
        "The sharpest curvature rises over training, 7.45 times: from 5.1 to 38 (train statistics).",
    ),
    "raised": (
        "descent",
        {"raised": {"": [0, 1, 1, 0]}, "step_to_safe": {"": 0.5}},
        "50 % of the updates raise the loss on their own batch.",
    ),
    "too long": (
        "descent",
        {"raised": {"": 0}, "step_to_safe": {"": 1.8}},
        "The learning rate is 1.8 times the longest step along the gradient that is safe.",
    ),
    "moved": (
        "distribution_shift",
        {"displacement": all_but(LAYERS, 0.1, block2__fc1=[0, 1, 2, 3.2])},
        "The outputs of `block2.fc1` have moved by 3.2 interquartile ranges since the first reading.",
    ),
    "noise": (
        "gradient_noise",
        {"gradient_square": {"": 0.01}, "gradient_variance": {"": 12.0}},
        "A batch of fewer than 1200 samples has more noise than gradient.",
    ),
    "together": (
        "interaction",
        {"cross_share": {"": -0.7}},
        "The layers bend the loss together: 70 % of the second order is between layers.",
    ),
    "upward": (
        "landscape",
        {"loss": {"": 2.0}, "loss_max@same-step": {"": 24.0}},
        "Along its gradient the loss rises to 12 times its value of 2, within the steps tried (same step).",
    ),
    "conditioning": (
        "conditioning",
        {"condition_95": all_but(LAYERS, 50.0, block4__fc1=52000.0)},
        "The inputs of `block4.fc1` are badly conditioned: 52,000 to 1 within 95 % of their energy.",
    ),
    "output moments": (
        "output_moments",
        {"overlap_mean@train": {"": 0.8}, "random_overlap_mean@train": {"": 0.001}},
        "The sharpest directions are those that shift the mean of the outputs: 80 % of them lies there, 0.1 % of a "
        "random direction (train statistics).",
    ),
    "loss": ("loss", {"loss": {"": [2.0, math.nan, 1.0, 1.0]}}, "The loss is not finite, first at step 10."),
    "risen": (
        "loss",
        {"loss": {"": [2.0, 1.0, 1.0, 1.0, 3.0, 4.0]}},
        "The loss has risen from 1, its lowest, to 3.",
    ),
}

HEALTHY = {
    "saturation": {"dead_share": dict.fromkeys(LAYERS, 0.01), "inactive_share": dict.fromkeys(LAYERS, 0.5)},
    "statistics_gap": {
        "mean_gap": dict.fromkeys(NORMS, 0.12),
        "variance_gap": dict.fromkeys(NORMS, 0.18),
        "train_loss": {"": 2.0},
        "eval_loss": {"": 2.05},
    },
    "gradient_flow": growing(1.1),
    "update_ratio": {"update_ratio": dict.fromkeys(LAYERS, 1e-3)},
    "activation_distribution": {"std": dict.fromkeys(LAYERS, 1.0), "mean": dict.fromkeys(LAYERS, 0.3)},
    "affine_drift": {
        "weight_mean": all_but(NORMS, 1.0, layer1__bn2=0.0),  # a gain that began at zero is on purpose
        "weight_drift": dict.fromkeys(NORMS, 0.1),
        "weight_identity_gap": dict.fromkeys(NORMS, 0.6),
    },
    "residual_stream": {
        "variance": dict.fromkeys(LAYERS, 2.0),
        "mean_share": dict.fromkeys(LAYERS, 0.02),
        "cosine": dict.fromkeys(LAYERS, 0.9),
    },
    "batch_norm_gradient_terms": {
        "variance_share": dict.fromkeys(NORMS, 0.02),
        "mean_share": dict.fromkeys(NORMS, 0.02),
        "rescale_cosine": dict.fromkeys(NORMS, 0.99),
    },
    "statistics_noise": {"mean_noise": dict.fromkeys(NORMS, 0.01), "scale_noise": dict.fromkeys(NORMS, 0.01)},
    "scale_invariance": {"angle": dict.fromkeys(LAYERS, 0.01), "effective_lr": dict.fromkeys(LAYERS, 0.01)},
    "covariate_shift": {"relative": dict.fromkeys(LAYERS, 0.1), "cosine": dict.fromkeys(LAYERS, 0.99)},
    "curvature": {"top_eigenvalue@train": {"": 10.0}, "converged@train": {"": 1}},
    "descent": {"raised": {"": 0}, "step_to_safe": {"": 0.2}},
    "distribution_shift": {"displacement": dict.fromkeys(LAYERS, 0.2)},
    "gradient_noise": {"gradient_square": {"": 1.0}, "gradient_variance": {"": 10.0}},
    "interaction": {"cross_share": {"": 0.1}},
    "landscape": {"loss": {"": 2.0}, "loss_max@same-step": {"": 2.1}},
    "conditioning": {"condition_95": dict.fromkeys(LAYERS, 20.0), "top_over_mean": dict.fromkeys(LAYERS, 5.0)},
    "output_moments": {"overlap_mean@train": {"": 0.1}, "random_overlap_mean@train": {"": 0.01}},
    "loss": {"loss": {"": [2.0, 1.5, 1.6, 1.2]}},
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_fault_gives_its_sentence(planted):
    probe, values, says = PLANTED[planted]
    steps = (0, 20, 40, 60) if probe == "statistics_gap" else (0, 10, 20, 30, 40, 50)
    assert sentences(probe, values, steps=steps[: max(4, max(map(len, [*by_step(values), [0]])))]) == [says]


def by_step(values):
    return [value for sites in values.values() for value in sites.values() if isinstance(value, list)]


def test_every_probe_has_a_planted_fault_and_a_healthy_record():
    codes = {probe.CODE for probe in probes.all()}
    assert {probe for probe, *_ in PLANTED.values()} == codes
    assert set(HEALTHY) == codes


@pytest.mark.parametrize("probe", HEALTHY)
def test_healthy_records_say_nothing(probe):
    assert sentences(probe, HEALTHY[probe]) == []


def test_young_statistics_are_not_said_to_lag():
    values = {"mean_gap": {"bn": 3.0}, "variance_gap": {"bn": 3.0}}
    assert sentences("statistics_gap", values, steps=(0, 4, 8, 17)) == []
    assert len(sentences("statistics_gap", values, steps=(0, 20, 40, 60))) == 2


def test_statistics_that_follow_slowly_are_young_for_longer():
    """Of a momentum of 0.01 the values of the start still make up more than exp(-5) after 400 updates."""
    values = {"mean_gap": {"slow": 3.0, "fast": 0.1}, "initial_share": {"slow": [1.0, 0.3, 0.1, 0.02]}}
    assert sentences("statistics_gap", values, steps=(0, 120, 230, 390)) == []
    values["initial_share"] = {"slow": [1.0, 0.3]}  # not recorded any more from the third reading on
    assert len(sentences("statistics_gap", values, steps=(0, 120, 501, 600))) == 1


@pytest.mark.parametrize(("gap", "word"), [(0.7, Urgency.NOTABLE), (5.0, Urgency.COSTLY)])
def test_a_lag_is_costly_only_if_it_is_extreme(gap, word):
    frame = seen_of(records("statistics_gap", {"mean_gap": {"bn": gap}}, steps=(0, 30, 60)))
    assert [said.remark.urgency for said in seen.stands_out(frame)] == [word]


@pytest.mark.parametrize(
    "ratios",
    [
        [0.0],  # a warm-up, read at its first step
        [1e-7],
        [0.0, 1e-3, 2e-3, 1e-3],
        [1e-3, 1e-3, 1e-6, 0.0],  # a cosine
    ],
)
def test_a_schedule_that_begins_or_ends_at_zero_hardly_changes_no_weights(ratios):
    steps = tuple(50 * index for index in range(len(ratios)))
    assert sentences("update_ratio", {"update_ratio": {"fc": ratios}}, steps=steps) == []


@pytest.mark.parametrize("ratios", [[1e-7, 1e-7, 2e-7], [0.0, 0.0, 0.0], [0.0, 3e-7, 0.0]])
def test_weights_that_never_change_are_told(ratios):
    (says,) = sentences("update_ratio", {"update_ratio": {"fc": ratios}}, steps=(0, 50, 100))
    assert says.startswith("Updates hardly change the weights of `fc`")


@pytest.mark.parametrize(("factor", "words"), [(1.46, "as theory says"), (1.6, "near what theory says"), (2.0, "")])
def test_a_growth_near_that_of_theory_is_said_to_be_it(factor, words):
    (says,) = sentences("gradient_flow", growing(factor), modules=NORM_AND_RELU)
    theory = f"{words} for a network with batch norm and ReLU at initialization (1.467)"
    assert (theory in says) if words else ("theory" not in says)
    assert not any("theory" in plain for plain in sentences("gradient_flow", growing(factor), modules={"fc": "Linear"}))


def test_layers_are_named_in_the_order_of_the_model():
    order = ["out", "hidden", "in"]  # neither natural order nor its reverse
    (says,) = sentences("gradient_flow", growing(30.0, order), modules=dict.fromkeys(order, "Linear"))
    assert "from `in` to `out`" in says


def test_the_most_urgent_comes_first_and_cells_are_told_apart():
    dead = {"dead_share": {"act": 0.4}}
    broken = {"loss": {"": [1.0, math.nan, 1.0, 1.0]}}
    both = seen_of(
        records("saturation", dead, "scope.rank0"),
        records("loss", broken, "scope.rank1"),
        cells=("scope.rank0", "scope.rank1"),
    )
    said = seen.stands_out(both)
    assert [(each.cell, each.probe, each.remark.urgency) for each in said] == [
        ("scope.rank1", "loss", Urgency.BROKEN),
        ("scope.rank0", "saturation", Urgency.COSTLY),
    ]
    assert seen.quiet(both, said) == []


def test_what_holds_for_several_cells_is_said_once_of_the_worst():
    cells = ("scope.rank0", "scope.rank1", "scope.rank2")
    shares = ({"act": 0.3, "out": 0.0}, {"act": 0.6, "out": 0.0}, {"act": 0.0, "out": 0.2})
    groups = [records("saturation", {"dead_share": share}, cell) for cell, share in zip(cells, shares, strict=True)]
    found = seen_of(*groups, cells=cells)
    said = seen.stands_out(found)
    assert [(each.cell, each.also, each.remark.sites) for each in said] == [
        ("scope.rank1", ("scope.rank0",), ("act",)),
        ("scope.rank2", (), ("out",)),
    ]
    assert "scope.rank1 and scope.rank0: 60 % of the units of `act`" in seen.summary_of(found)


VALUES = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e300, math.nan, math.inf]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_records_give_whole_sentences_about_their_own_layers(data):
    probe = data.draw(st.sampled_from(probes.all()))
    known = [
        *HEALTHY[probe.CODE],
        *(name for each, values, _ in PLANTED.values() if each == probe.CODE for name in values),
    ]
    sites = data.draw(st.lists(st.sampled_from(["", *LAYERS, "`odd` {name}"]), min_size=1, max_size=5, unique=True))
    series = st.lists(VALUES, min_size=1, max_size=5)
    values = {name: {site: data.draw(series) for site in sites} for name in dict.fromkeys(known)}
    found = seen_of(records(probe.CODE, values, steps=(0, 10, 20, 30, 40)), modules=NORM_AND_RELU)
    for said in seen.stands_out(found):
        says = said.remark.says
        assert says.endswith(".")
        assert says.count("`") % 2 == 0
        assert says[0] == "`" or not says[0].islower()
        assert not re.search(r"None|\bnan\b|\binf\b|  |\.\.$", re.sub(r"`[^`]*`", "x", says)), says
        assert set(said.remark.sites) <= set(sites)
        assert 1 <= said.remark.rank < 4
