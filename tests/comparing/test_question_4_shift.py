"""Shift of gradients and distributions: the question finds what was planted, in the layers that can shift."""

import math

import pytest

from kit.planted_comparison import PAIR, compared, judged, question
from normscope.comparing.questions.gradient_shift import COSINE, RELATIVE, SHIFT
from normscope.records.answers import also_tried, headline

SITES = ("a", "b", "c")


def shifts(l2, relative=None, cosine=0.9, first=True):
    """What one arm records: the first layer has no shift, if nothing comes before it."""
    relative = l2 if relative is None else relative
    found = {"l2": l2, "relative": relative, "cosine": cosine}
    nothing = {"l2": 0.0, "relative": 0.0, "cosine": 1.0}
    return {
        ("covariate_shift", name): {site: nothing[name] if first and site == "a" else value for site in SITES}
        for name, value in found.items()
    }


def planted(own, none, **options):
    return compared({"own": own, "none": none}, **options)


@pytest.mark.parametrize(
    ("own", "none", "outcome"),
    [
        (0.1, 0.4, "holds"),
        (0.4, 0.1, "opposite"),
        (0.2, 0.2, "no effect that matters"),
        (0.2, 0.24, "unclear"),  # at the margin
    ],
)
def test_the_question_finds_what_was_planted(own, none, outcome):
    assert judged("shift", planted(shifts(own), shifts(none))).outcome.value == outcome


def test_the_length_decides_as_in_the_source_and_other_measures_are_exceptions():
    verdict = judged("shift", planted(shifts(0.4, 0.1, 0.9), shifts(0.1, 0.4, 0.5), spread=1e-4))
    said = headline(verdict)
    assert said.startswith("No, the opposite: the updates of earlier layers shift the network's gradients ")
    assert " times more (" in said
    assert "But holds with the shift relative to the gradient's length (" in said
    assert "holds with the cosine (0.4" in said
    assert [each.effect.point for each in (verdict, *verdict.parts)] == pytest.approx(
        [-math.log(4), math.log(4), 0.4], abs=0.01
    )
    assert "against" not in also_tried(verdict)  # the arms are no condition


def test_layers_that_nothing_comes_before_are_left_out_in_both_arms():
    # Without norms nothing comes before the first layer; with a norm of the input something does.
    evidence = planted(shifts(0.1, cosine=0.5, first=False), shifts(0.4, cosine=0.5), spread=1e-4)
    for quantity, expected in ((SHIFT, math.log(0.1)), (RELATIVE, math.log(0.1)), (COSINE, 0.5)):
        assert quantity(evidence, arm="own", rate=1.0) == pytest.approx(expected, rel=1e-2)
    assert COSINE(evidence, arm="none", rate=1.0) == pytest.approx(0.5, rel=1e-2)
    own = dict(shifts(0.1, first=False))
    own["covariate_shift", "l2"] = {"a": 100.0, "b": 0.1, "c": 0.1}
    assert SHIFT(planted(own, shifts(0.4)), arm="own", rate=1.0) == pytest.approx(math.log(0.1), abs=0.05)


def test_a_layer_without_gradient_is_not_taken_for_the_first():
    dead = shifts(0.4)
    dead["covariate_shift", "l2"] = {"a": 0.0, "b": 0.4, "c": 0.0}
    dead["covariate_shift", "relative"] = {"a": 0.0, "b": 0.4, "c": math.nan}
    own = shifts(0.1)
    own["covariate_shift", "l2"] = {"a": 0.0, "b": 0.1, "c": 0.9}
    expected = (math.log(0.1) + math.log(0.9)) / 2
    assert SHIFT(planted(own, dead), arm="own", rate=1.0) == pytest.approx(expected, abs=0.05)


def test_a_network_that_does_not_learn_is_not_compared():
    verdict = judged("shift", planted(shifts(0.1), shifts(0.4), learn=["own"]))
    assert verdict.outcome.value == "not measurable"


def paths(layers, norms=None):
    """Path lengths of the layers a and b, and of norms behind them where they are given."""
    classes = {"Net": {"": 0.0}, "Linear": {"a": 1.0, "b": 3.0}}
    classes["BatchNorm1d" if norms is not None else "Bypass"] = {"a_norm": 2.0, "b_norm": 4.0}
    sites = {"a": [0.0, 1.0, layers], "b": [0.0, 1.0, layers]}
    if norms is not None:
        sites |= {"a_norm": [0.0, 1.0, norms], "b_norm": [0.0, 1.0, norms]}
    found = {("model", name): given for name, given in classes.items()}
    return found | {("distribution_shift", "path_length"): sites}


def test_distributions_are_compared_at_layers_and_at_what_activations_see():
    verdict = judged("shift", planted(shifts(0.1) | paths(6.0, 1.0), shifts(0.1) | paths(3.0), spread=1e-3))
    parts = {part.conditions[0].value: part for part in verdict.parts if "distributions" in part.claim}
    assert {place: part.outcome.value for place, part in parts.items()} == {
        "the outputs of layers": "opposite",
        "the inputs of activations": "holds",
    }
    assert parts["the inputs of activations"].effect.point == pytest.approx(math.log(3.0), abs=0.01)
    assert "the distributions of its units move 3.0" in parts["the inputs of activations"].finding


def test_without_norms_that_stand_behind_layers_there_is_one_place():
    verdict = judged("shift", planted(shifts(0.1) | paths(6.0), shifts(0.1) | paths(3.0)))
    assert sum("distributions" in part.claim for part in verdict.parts) == 1


def test_a_probe_that_was_left_out_is_said_and_nothing_is_drawn():
    evidence, asked = compared({}, readings={}), question("shift")
    assert headline(judged("shift", evidence)) == (
        "Not measurable: the probe covariate_shift was left out to keep the budget."
    )
    assert list(asked.figures(evidence, [PAIR])) == []


def test_the_shift_is_drawn_over_steps_and_by_layer():
    figures = question("shift").figures(planted(shifts(0.1) | paths(6.0), shifts(0.4) | paths(3.0)), [PAIR])
    assert [figure.slug for figure in figures] == ["shift", "shift-cosine", "layers-relative", "distributions"]
