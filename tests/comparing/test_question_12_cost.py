"""The question of cost: times and bytes are known by hand."""

import math

import pytest

from kit.planted_comparison import ARMS, PAIR, compared, judged, question
from normscope.comparing import Pair
from normscope.records.answers import headline


def cost(seconds, memory=1e6):
    return {("cost", "seconds"): seconds, ("cost", "bytes"): memory}


def memory_of(verdict):
    (found,) = [part for part in verdict.parts if "memory" in part.claim]
    return found


def test_a_longer_step_holds():
    verdict = judged("cost", compared({"own": cost(0.003, 3e6), "none": cost(0.002, 2e6)}))
    assert verdict.outcome.value == "holds"
    assert verdict.effect.point == pytest.approx(math.log(1.5), abs=0.02)
    assert headline(verdict).startswith("Yes: a training step takes 1.")
    assert "times longer" in verdict.finding
    memory = memory_of(verdict)
    assert memory.outcome.value == "holds"
    assert "times larger" in memory.finding


def test_a_shorter_step_is_the_opposite_and_it_needs_no_arm_that_learns():
    verdict = judged("cost", compared({"own": cost(0.002), "none": cost(0.003)}, learn=[]))
    assert verdict.outcome.value == "opposite"
    assert not verdict.premises


def test_two_per_cent_make_no_difference():
    verdict = judged("cost", compared({"own": cost(0.00204), "none": cost(0.002)}, spread=0.005))
    assert verdict.outcome.value == "no effect that matters"


@pytest.mark.parametrize(("ratio", "word"), [(1.5, "holds"), (1.0, "no effect that matters"), (0.5, "opposite")])
def test_bytes_that_are_the_same_at_every_seed_decide_by_themselves(ratio, word):
    """Memory is counted: equal seeds are no lack of replicates."""
    verdict = judged("cost", compared({"own": cost(0.003, ratio * 1e6), "none": cost(0.002)}, spread=0.0))
    assert memory_of(verdict).outcome.value == word
    assert memory_of(verdict).p_value is None
    # Times are measured, and their spread is wanted.
    assert verdict.outcome.value == "not measurable"


def test_two_seeds_count_too_few():
    verdict = judged("cost", compared({"own": cost(0.003, 2e6), "none": cost(0.002)}, spread=0.0, seeds=2))
    assert memory_of(verdict).outcome.value == "not measurable"


def test_units_are_those_that_people_read():
    evidence = compared({"own": cost(0.003, 3e6), "none": cost(0.002, 2e6)}, spread=0.0)
    (table,) = question("cost").tables(evidence, [PAIR])
    assert [tuple(map(float, row[1:])) for row in table.rows] == [(3.0, 2.0), (3.0, 2.0)]
    assert [row[0].partition(" ")[0] for row in table.rows] == ["Milliseconds", "Megabytes"]


def test_an_arm_that_stands_aside_costs_nothing_that_matters():
    arms = {**ARMS, "population": "with batch norm of the population"}
    evidence = compared({arm: cost(0.002) for arm in arms}, arms=arms)
    aside = Pair("own", "population", (arms["own"], arms["population"]))
    asked = question("cost", arms)
    assert list(asked.contrasts(evidence, aside)) == []
    (table,) = asked.tables(evidence, [PAIR, aside])
    assert len(table.columns) == 3


def test_steps_that_were_not_timed_are_named():
    assert "steps were not timed" in headline(judged("cost", compared({})))
    assert not question("cost").tables(compared({}), [PAIR])
