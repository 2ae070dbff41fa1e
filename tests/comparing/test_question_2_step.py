"""Safe steps: the question finds what was planted, and knows steps without bound."""

import math

import numpy as np
import pytest

from kit.planted_comparison import PAIR, compared, judged, question
from normscope.comparing import Pair
from normscope.comparing.questions.step_size import SAFE, relative_step
from normscope.records.answers import headline


def planted(own, none, *, raised=(0.2, 0.2), relative=None, **options):
    """Safe steps of both arms, the share of steps that raise the loss, and lengths of gradient and weights."""
    values = {}
    for index, (arm, safe) in enumerate((("own", own), ("none", none))):
        values[arm] = {("descent", "safe_step"): safe, ("descent", "raised"): raised[index]}
        values[arm]["descent", "step_to_safe"] = 0.1
        if relative is not None:
            values[arm]["landscape", "gradient_norm"], values[arm]["model", "weight_norm"] = relative[index]
    return compared(values, **options)


@pytest.mark.parametrize(
    ("own", "none", "outcome"),
    [
        (3.0, 1.0, "holds"),
        (1.0, 3.0, "opposite"),
        (1.0, 1.0, "no effect that matters"),
        (1.2, 1.0, "unclear"),  # at the margin
        (-1.0, 1.0, "not measurable"),  # no such step
    ],
)
def test_the_question_finds_what_was_planted(own, none, outcome):
    assert judged("step", planted(own, none)).outcome.value == outcome


def test_the_answer_names_both_learning_rates():
    said = headline(judged("step", planted(0.6, 0.2, spread=1e-3)))
    assert said.startswith("Yes: the longest step along the gradient that lowers the loss is ")
    assert " times longer (" in said
    assert ": a learning rate of 0.6 against 0.2." in said


def test_a_reading_without_bound_is_longer_than_all_others():
    evidence = planted([1.0, math.inf, 2.0], [0.5, 1.0, 2.0], spread=1e-4)
    assert np.exp(SAFE(evidence, arm="own", rate=1.0)) == pytest.approx(2.0, rel=1e-2)
    (table,) = question("step").tables(evidence, [PAIR])
    assert [row[-1] for row in table.rows] == ["0.333", "0"]


def test_a_run_of_which_most_readings_have_no_bound_has_no_number():
    verdict = judged("step", planted([math.inf, math.inf, 2.0], 1.0))
    assert verdict.outcome.value == "not measurable"


def test_a_network_that_does_not_learn_is_not_compared():
    verdict = judged("step", planted(3.0, 1.0, learn=["own"]))
    assert headline(verdict).startswith("Not measurable: a premise is not met: The network without norms learns")


def test_relative_to_the_weights_is_tried_where_both_lengths_were_read():
    evidence = planted(3.0, 1.0, relative=((1.0, 10.0), (4.0, 10.0)), spread=1e-4)
    assert np.exp(relative_step()(evidence, arm="own", rate=1.0)) == pytest.approx(0.3, rel=1e-2)
    assert "But opposite with the step relative to the weights (1.33" in headline(judged("step", evidence))
    alone = judged("step", planted(3.0, 1.0))
    assert not any("relative" in part.endpoint for part in alone.parts)


def test_the_share_of_steps_that_raise_the_loss_is_a_claim_of_its_own():
    part = next(p for p in judged("step", planted(1.0, 1.0, raised=(0.1, 0.5))).parts if "raise" in p.claim)
    assert part.outcome.value == "holds"
    assert "is 40" in part.finding
    assert "points lower" in part.finding


def test_a_probe_that_was_left_out_is_said_and_nothing_is_drawn():
    evidence, asked = compared({}, readings={}), question("step")
    assert headline(judged("step", evidence)) == "Not measurable: the probe descent was left out to keep the budget."
    assert (list(asked.figures(evidence, [PAIR])), list(asked.tables(evidence, [PAIR]))) == ([], [])


def test_two_figures_show_the_step_and_the_learning_rate_over_it():
    figures = question("step").figures(planted(3.0, 1.0), [PAIR])
    assert [figure.slug for figure in figures] == ["safe-step", "step-to-safe"]


def test_an_arm_in_which_no_probe_is_read_is_left_out_beside_the_others():
    arms = {"own": "with its norms", "none": "without norms", "population": "with the population's statistics"}
    values = {arm: {("descent", "safe_step"): 1.0} for arm in ("own", "none")}
    aside = Pair("own", "population", (arms["own"], arms["population"]))
    evidence = compared(values, arms=arms)
    with_aside = judged("step", evidence, (PAIR, aside))
    assert len(with_aside.parts) == len(judged("step", evidence).parts)
