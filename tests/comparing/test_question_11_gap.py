"""The question of training against evaluation: losses and shares are known by hand."""

import pytest

from kit.planted_comparison import ARMS, PAIR, compared, judged, question
from normscope.comparing import Pair
from normscope.records.answers import headline


def ends(train, shares):
    found = {("gap", "train"): train, ("gap", "eval"): train + sum(shares.values())}
    return found | {("gap", cause): share for cause, share in shares.items()}


OWN = {"batch statistics": 0.001, "other data": 0.1, "domain shift": 0.01, "running statistics": 0.4}


def test_a_wider_gap_holds():
    verdict = judged("gap", compared({"own": ends(0.5, OWN), "none": ends(0.5, {"other data": 0.1})}))
    assert verdict.outcome.value == "holds"
    assert verdict.effect.point == pytest.approx(0.411, abs=0.02)
    assert headline(verdict).startswith("Yes: the loss rises by 0.4")
    assert "more" in verdict.finding
    assert "from training to evaluation" in verdict.finding


def test_a_narrower_one_is_the_opposite():
    evidence = compared({"own": ends(0.5, {"other data": 0.1}), "none": ends(0.5, {"other data": 0.5})})
    assert judged("gap", evidence).outcome.value == "opposite"


def test_what_the_statistics_do_is_judged_in_the_network_as_it_is():
    verdict = judged("gap", compared({"own": ends(0.5, OWN), "none": ends(0.5, {"other data": 0.1})}))
    words = {part.claim: part.outcome.value for part in verdict.parts}
    assert words == {
        "The running statistics make evaluation worse.": "holds",
        "Normalizing by other statistics than the batch's own raises the loss.": "no effect that matters",
    }


def test_the_shares_are_judged_once_and_need_no_other_arm_to_learn():
    evidence = compared({"own": ends(0.5, OWN), "none": ends(2.0, {"other data": 0.0})}, learn=["own"])
    other = Pair("own", "layer", ("with its norms", "with layer norm"))
    verdict = judged("gap", evidence, [PAIR, other])
    assert verdict.outcome.value == "not measurable"
    assert "The network without norms learns" in verdict.why
    running = [part for part in verdict.parts if part.claim.startswith("The running")]
    assert [part.outcome.value for part in running] == ["holds"]


def test_a_network_without_running_statistics_has_no_such_claims():
    evidence = compared({arm: ends(0.5, {"other data": rise}) for arm, rise in (("own", 0.1), ("none", 0.3))})
    assert not judged("gap", evidence).parts


def test_the_table_adds_up():
    evidence = compared({"own": ends(0.5, OWN), "none": ends(0.5, {"other data": 0.1})}, spread=0.0)
    (table,) = question("gap").tables(evidence, [PAIR])
    first, *steps, last = [(row[0], float(row[1])) for row in table.rows]
    assert (first[0], last[0]) == ("Loss of training", "Loss of evaluation")
    assert [name for name, _ in steps] == [f"Through {cause}" for cause in OWN]
    assert first[1] + sum(value for _, value in steps) == pytest.approx(last[1], abs=0.01)
    assert table.columns == ("", "With its norms", "Without norms")
    assert table.rows[1][2] == ""
    assert not question("gap").figures(evidence, [PAIR])


def test_where_no_run_ended_it_says_so():
    assert "no run came to its end" in headline(judged("gap", compared({arm: {} for arm in ARMS})))
