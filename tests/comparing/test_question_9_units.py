"""The question of dead units: shares are known by hand."""

import pytest

from kit.planted_comparison import ARMS, PAIR, compared, judged, question
from normscope.records.answers import headline, tried


def shares(**by_name):
    return {("saturation", name): value for name, value in by_name.items()}


def test_fewer_silent_units_hold_in_points():
    evidence = compared(
        {
            "own": shares(silent_share={"1": [0.0, 0.0, 0.02], "2": [0.0, 0.0, 0.04]}),
            "none": shares(silent_share={"1": [0.0, 0.0, 0.2], "2": [0.0, 0.0, 0.4]}),
        }
    )
    verdict = judged("units", evidence)
    assert verdict.outcome.value == "holds"
    assert verdict.effect.point == pytest.approx(0.3 - 0.03, abs=0.01)
    assert headline(verdict).startswith("Yes: the share of silent units is 2")
    assert "points lower" in verdict.finding
    assert "[on the last batch]" in verdict.finding
    (figure,) = question("units").figures(evidence, [PAIR])
    assert figure.title == "Share of silent units (on the last batch), by layer"


def test_more_of_them_are_the_opposite():
    evidence = compared({"own": shares(silent_share=0.3), "none": shares(silent_share=0.1)})
    assert judged("units", evidence).outcome.value == "opposite"


def test_units_that_died_on_the_way_are_seen_though_they_once_were_active():
    """Active at the first step, they count as never dead; the last batch tells."""
    of_none = shares(silent_share=[0.0, 0.0, 0.3], dead_share=[0.0, 0.0, 0.0])
    evidence = compared({"own": shares(silent_share=0.0, dead_share=0.0), "none": of_none})
    verdict = judged("units", evidence)
    assert verdict.outcome.value == "holds"
    assert tried(verdict) == (verdict,)


def test_saturated_outputs_decide_where_no_rectifier_is_silent():
    evidence = compared(
        {
            "own": shares(silent_share=0.0, dead_share=0.0, output_tail=0.05),
            "none": shares(silent_share=0.0, dead_share=0.0, output_tail=0.4),
        }
    )
    verdict = judged("units", evidence)
    assert verdict.outcome.value == "holds"
    assert "the share of saturated outputs is 3" in verdict.finding
    assert "[tanh and sigmoid]" in verdict.finding


def test_where_nothing_is_dead_it_says_so():
    evidence = compared({arm: shares(silent_share=0.0, dead_share=0.0) for arm in ARMS})
    assert headline(judged("units", evidence)) == "Not measurable: in no arm is a single unit dead or saturated."
    assert not question("units").figures(evidence, [PAIR])


def test_without_an_activation_it_says_so():
    evidence = compared({}, readings={"saturation": {"when": "often", "options": {}}})
    assert "no activation that is a module was heard" in headline(judged("units", evidence))


def test_a_probe_that_was_left_out_is_named():
    assert "saturation was left out to keep the budget" in headline(judged("units", compared({})))


def test_half_a_point_does_not_matter():
    evidence = compared({"own": shares(silent_share=0.1), "none": shares(silent_share=0.103)})
    assert judged("units", evidence).outcome.value == "no effect that matters"
