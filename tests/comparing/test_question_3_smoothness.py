"""The loss along the gradient: the question finds what was planted under each matching."""

import pytest

from kit.planted_comparison import PAIR, compared, judged, question
from normscope.comparing.questions.smoothness import MATCHINGS
from normscope.records import standing
from normscope.records.answers import headline

NAMES = ("loss_range", "loss_log_range", "gradient_difference_relative", "effective_beta")


def planted(without_over_with, **options):
    """How many times larger a measure is without norms, by ``NAME@MATCHING``; 1 if left out."""
    values = {"own": {}, "none": {}}
    for matching in MATCHINGS:
        for arm in values:
            values[arm]["landscape", f"loss_min@{matching}"] = 1.0
            values[arm]["landscape", f"loss_max@{matching}"] = 2.0
        for name in NAMES:
            values["own"]["landscape", f"{name}@{matching}"] = 0.5
            ratio = without_over_with.get(f"{name}@{matching}", 1.0)
            values["none"]["landscape", f"{name}@{matching}"] = 0.5 * ratio
    return compared(values, **options)


def alike(ratio):
    return {f"{name}@{matching}": ratio for name in NAMES for matching in MATCHINGS}


@pytest.mark.parametrize(
    ("ratio", "outcome"),
    [(3.0, "holds"), (0.3, "opposite"), (1.0, "no effect that matters")],
)
def test_the_question_finds_what_was_planted(ratio, outcome):
    verdict = judged("smoothness", planted(alike(ratio)))
    assert {each.outcome.value for each in (verdict, *verdict.parts)} == {outcome}
    assert len(verdict.parts) == 11


def test_at_the_margin_nothing_is_decided():
    verdict = judged("smoothness", planted({"loss_range@same-step": 1.5}))
    assert verdict.outcome.value == "unclear"


def test_the_source_s_matching_decides_and_another_is_an_exception():
    verdict = judged("smoothness", planted(alike(3.0) | {"loss_range@predicted-decrease": 0.4}, spread=1e-4))
    said = headline(verdict)
    assert said.startswith("Yes: the range of the loss along the gradient is ")
    assert " times narrower (" in said
    assert "But opposite with the same predicted decrease (2." in said
    assert " times wider (" in said
    assert standing(verdict) == "depends on the matching"


def test_a_measure_alone_is_an_exception_too():
    verdict = judged("smoothness", planted(alike(3.0) | {"effective_beta@same-step": 0.4}))
    assert "But opposite with effective beta (" in headline(verdict)
    assert standing(verdict) == "depends on the measure"


def test_a_network_that_does_not_learn_is_not_compared():
    verdict = judged("smoothness", planted(alike(3.0), learn=["own"]))
    assert {each.outcome.value for each in (verdict, *verdict.parts)} == {"not measurable"}


def test_the_table_holds_every_measure_at_every_matching():
    (table,) = question("smoothness").tables(planted(alike(3.0), spread=1e-4), [PAIR])
    assert len(table.rows) == 12
    assert {row[1:] for row in table.rows} == {("0.5", "1.5")}


def test_bands_are_drawn():
    figures = question("smoothness").figures(planted(alike(3.0)), [PAIR])
    assert [figure.slug for figure in figures] == ["loss-band", "gradient-band"]


def test_a_probe_that_was_left_out_is_said_and_nothing_is_drawn():
    evidence, asked = compared({}, readings={}), question("smoothness")
    assert headline(judged("smoothness", evidence)) == (
        "Not measurable: the probe landscape was left out to keep the budget."
    )
    assert (list(asked.figures(evidence, [PAIR])), list(asked.tables(evidence, [PAIR]))) == ([], [])
