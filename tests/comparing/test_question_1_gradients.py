"""Gradients by depth: the question finds what was planted, and theory is told of chains alone."""

import math

import pytest
import torch
from torch import nn

import normscope as ns
from kit.planted_comparison import ARMS, PAIR, compared, judged, question
from normscope.comparing import layers
from normscope.records.answers import headline

NAMES = [f"layers.{index}" for index in range(8)]


def squared(growth, names=NAMES):
    """Output gradients whose square grows by a factor a layer toward the input."""
    return {name: growth ** ((len(names) - 1 - index) / 2) for index, name in enumerate(names)}


def planted(own, none, *, late=None, learn=None, **options):
    """Growths of both arms at the first step, and at the others."""
    values = {}
    for arm, growth, end in (("own", own, (late or (own, none))[0]), ("none", none, (late or (own, none))[1])):
        first, last = squared(growth), squared(end)
        norms = {name: [first[name], last[name], last[name]] for name in NAMES}
        values[arm] = {("gradient_flow", "output_norm"): norms, ("gradient_flow", "norm"): norms}
    return compared(values, learn=learn, **options)


@pytest.mark.parametrize(
    ("own", "none", "outcome"),
    [
        (1.47, 0.06, "holds"),
        (0.9, 0.5, "holds"),
        (1.47, 4.0, "holds"),
        (1.47, 0.95, "opposite"),
        (2.0, 0.5, "no effect that matters"),  # equally far from 1
        (1.47, math.exp(-math.log(1.47) - math.log(1.05)), "unclear"),  # at the margin
    ],
)
def test_the_question_finds_what_was_planted(own, none, outcome):
    assert judged("gradients", planted(own, none)).outcome.value == outcome


def test_the_answer_names_both_growths_and_says_what_vanishes():
    said = headline(judged("gradients", planted(1.47, 0.062, spread=1e-4)))
    assert said.startswith("Yes: a layer changes the squared gradient 10.97")  # 1 / .062 / 1.47
    assert "toward the input it grows 1.47 times a layer with its norms" in said
    assert "without norms it shrinks to 0.062 of itself a layer and vanishes (3.5e−9 of itself over 7 layers)" in said


def test_what_explodes_and_what_keeps_its_size_is_said():
    said = headline(judged("gradients", planted(1.0, 3.0)))
    assert "it keeps its size (" in said
    assert "without norms it grows 3" in said
    assert "and explodes (" in said


def test_a_mild_growth_neither_vanishes_nor_explodes():
    said = headline(judged("gradients", planted(1.2, 0.8)))
    assert "vanish" not in said
    assert "explode" not in said


def test_trained_weights_that_tell_another_story_are_an_exception_in_the_answer():
    verdict = judged("gradients", planted(1.1, 0.5, late=(2.0, 1.0)))
    assert "But opposite with trained weights" in headline(verdict)


def test_trained_weights_are_compared_only_where_both_arms_learn():
    verdict = judged("gradients", planted(1.1, 0.5, late=(2.0, 1.0), learn=["own"]))
    words = [(part.conditions[0].value, part.outcome.value) for part in verdict.parts if part.claim == verdict.claim]
    assert verdict.outcome.value == "holds"
    assert words == [("trained weights", "not measurable")]


def test_the_spread_of_the_weights_gradients_is_a_claim_of_its_own():
    part = next(p for p in judged("gradients", planted(1.1, 0.5)).parts if "differ less" in p.claim)
    assert part.outcome.value == "holds"
    assert part.effect.point == pytest.approx(3.5 * (math.log(2) - math.log(1.1)), abs=0.03)


def test_layers_of_different_sizes_are_not_compared_with_each_other():
    # Pooling divides the gradient of every earlier output by 16: nothing has vanished.
    sizes = {name: 64.0 if index < 4 else 1.0 for index, name in enumerate(NAMES)}
    flat = {name: 1.0 / 16 if index < 4 else 1.0 for index, name in enumerate(NAMES)}
    arm = {("gradient_flow", "output_norm"): flat, ("gradient_flow", "output_positions"): sizes}
    evidence = compared({"own": arm, "none": arm}, spread=1e-4)
    assert layers.growth("start")(evidence, arm="own", rate=1.0) == pytest.approx(0.0, abs=1e-3)
    assert layers.reach(evidence, arm="own", rate=1.0) == 6


def test_layers_without_a_like_cannot_be_compared():
    sizes = {name: float(2**index) for index, name in enumerate(NAMES)}
    arm = {("gradient_flow", "output_norm"): squared(2.0), ("gradient_flow", "output_positions"): sizes}
    verdict = judged("gradients", compared({"own": arm, "none": arm}))
    assert headline(verdict) == (
        "Not measurable: no two layers have outputs of one size, so their gradients cannot be compared."
    )


def test_the_recorded_order_of_layers_counts_not_that_of_their_names():
    names = ["stem", "block.1", "block.2", "a_head"]
    arm = {("gradient_flow", "output_norm"): squared(4.0, names)}
    order = {("model", "order"): {name: float(index) for index, name in enumerate(names)}}
    with_order = compared({"own": arm | order, "none": arm | order}, spread=1e-4)
    assert layers.order_of(with_order, arm="own", rate=1.0) == names
    assert layers.growth("start")(with_order, arm="own", rate=1.0) == pytest.approx(math.log(4.0), abs=1e-2)
    by_name = compared({"own": arm, "none": arm}, spread=1e-4)
    assert layers.growth("start")(by_name, arm="own", rate=1.0)[0] < 0


def test_a_probe_that_was_left_out_is_said_and_nothing_is_drawn():
    evidence = compared({}, readings={})
    asked = question("gradients")
    assert headline(judged("gradients", evidence)) == (
        "Not measurable: the probe gradient_flow was left out to keep the budget."
    )
    assert (list(asked.figures(evidence, [PAIR])), list(asked.tables(evidence, [PAIR]))) == ([], [])


def test_one_arm_alone_is_no_comparison():
    evidence = compared({"own": {("gradient_flow", "output_norm"): squared(1.4)}})
    assert headline(judged("gradients", evidence)) == (
        "Not measurable: the probe gradient_flow read nothing but with its norms."
    )


def test_gradients_that_do_not_reach_the_input_are_no_traceback():
    dead = dict.fromkeys(NAMES, 0.0)
    evidence = compared({"own": {("gradient_flow", "output_norm"): squared(1.4)},
                         "none": {("gradient_flow", "output_norm"): dead}})  # fmt: skip
    assert judged("gradients", evidence).outcome.value == "not measurable"


def test_two_figures_show_layers_in_order_and_one_the_growth():
    figures = question("gradients").figures(planted(1.47, 0.062, spread=1e-4), [PAIR])
    assert [figure.slug for figure in figures] == ["layers-output-norm", "layers-norm", "growth"]
    assert "by the factor 1.47 with its norms, 0.062 without norms" in figures[2].caption


def told(levels, measured, *, kind="level_relu", chains=None, widths=None):
    """The records of layers of which theory tells levels, and of their gradients; both logarithms of squares."""
    chains = dict.fromkeys(levels, 0.0) if chains is None else chains
    norms = {site: math.exp(level / 2) for site, level in measured.items()}
    values = {("model", kind): levels, ("model", "chain"): chains, ("gradient_flow", "output_norm"): norms}
    values["model", "order"] = {site: float(index) for index, site in enumerate(measured)}
    return values | ({} if widths is None else {("gradient_flow", "output_width"): widths})


def theory(values):
    return layers.theories_of(compared({"own": values, "none": values}, spread=0.0), "own", "here")


def test_growth_and_theory_are_slopes_over_the_layers_of_which_theory_speaks():
    levels = {"a": 0.6, "b": 0.3, "c": 0.0}
    (found,) = theory(told(levels, {"first": 99.0, "a": 1.0, "b": 0.5, "c": 0.0, "last": -99.0}))
    assert found.words == "here (ReLU)"
    assert found.expected == pytest.approx(math.exp(0.3))
    assert found.measured == pytest.approx(math.exp(0.5))


def test_chains_have_levels_of_their_own():
    levels = {"a": 0.3, "b": 0.0, "c": 0.3, "d": 0.0}
    squares = {"a": 70.4, "b": 70.0, "c": 0.4, "d": 0.0}
    (found,) = theory(told(levels, squares, chains={"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.0}))
    assert found.expected == pytest.approx(math.exp(0.3))
    assert found.measured == pytest.approx(math.exp(0.4))


def test_layers_of_other_widths_are_held_against_theory_by_the_sum_over_the_width():
    widths = {"a": 16.0, "b": 4.0, "c": 1.0}
    (found,) = theory(told({"a": 0.6, "b": 0.3, "c": 0.0}, {"a": 0.0, "b": 0.0, "c": 0.0}, widths=widths))
    assert found.measured == pytest.approx(4.0)


def test_too_few_layers_of_a_kind_are_no_slope_and_no_table():
    values = told({"a": 0.3, "b": 0.0}, {"a": 0.4, "b": 0.0})
    assert theory(values) == []
    assert question("gradients").tables(compared({"own": values, "none": values}), [PAIR]) == []


def case_of(width=96, depth=7):
    """A chain of linear layers with torch's initial weights, batch norm and ReLU, as a user would write it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            blocks = [[nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()] for _ in range(depth)]
            self.net = nn.Sequential(*[module for block in blocks for module in block], nn.Linear(width, width))

        def forward(self, x):
            return self.net(x)

    def make(seed):
        model = Net()
        batches = [(torch.randn(256, width), torch.randn(256, width)) for _ in range(2)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        return ns.Case(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), batches, optimizer)

    return make


def test_random_chains_follow_their_theory_and_the_records_say_that_they_are_chains(tmp_path):
    found = ns.compare(case_of(), seeds=3, steps=2, questions=["gradients"], workers=1, out=tmp_path / "run")
    (table,) = found.tables(found.answers_in_order[0])
    assert [row[0] for row in table.rows] == [
        "with its norms (batch norm and ReLU)",
        "without norms (ReLU)",
    ]
    assert [float(row[4]) for row in table.rows] == pytest.approx([1.0, 1.0], abs=0.15)
    assert float(table.rows[1][3]) == pytest.approx(1 / 6, rel=0.02)
    for row in table.rows:
        low, high = map(float, row[2].split(" to "))
        assert low <= float(row[1]) <= high
    # All outputs have one size: the growth is what the probe records.
    for arm in ARMS:
        recorded = found.evidence.select(probe="gradient_flow", name="growth", arm=arm, step=0).sort("seed")["value"]
        growth = layers.growth("start")(found.evidence, arm=arm, rate=1.0)
        assert growth == pytest.approx([math.log(value) for value in recorded])


def test_layers_of_different_widths_are_compared_by_the_square_summed_over_the_width():
    widths = dict(zip(NAMES, (8, 8, 16, 16, 32, 32, 64, 64), strict=True))
    flat = {name: width**-0.5 for name, width in widths.items()}
    arm = {("gradient_flow", "output_norm"): flat, ("gradient_flow", "output_width"): widths}
    evidence = compared({"own": arm, "none": arm}, spread=1e-4)
    assert layers.growth("start")(evidence, arm="own", rate=1.0) == pytest.approx(0.0, abs=1e-3)


def test_the_end_is_the_last_quarter_of_the_steps():
    first, middle, last = squared(1.0), squared(9.0), squared(2.0)
    arm = {("gradient_flow", "output_norm"): {name: [first[name], middle[name], last[name]] for name in NAMES}}
    evidence = compared({"own": arm, "none": arm}, spread=1e-4)
    assert layers.growth("end")(evidence, arm="own", rate=1.0) == pytest.approx(math.log(2.0), abs=1e-3)
