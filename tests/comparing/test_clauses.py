"""Clauses of a comparison's sentences, and premises that are judged seed by seed."""

from dataclasses import replace

import numpy as np
import pytest

from kit.planted_comparison import compared, judged
from normscope.comparing.clauses import how_to_read, listed
from normscope.records import Outcome
from normscope.records.answers import corrected
from normscope.stats import adjust
from normscope.studies.every_seed import each_above, span


@pytest.mark.parametrize(("words", "said"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")])
def test_words_are_joined(words, said):
    assert listed(words) == said


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([0.2, 0.3], Outcome.HOLDS),
        ([0.1, 0.05], Outcome.OPPOSITE),  # the bound itself is not above it
        ([0.2, 0.05], Outcome.UNCLEAR),
        ([0.2, np.nan], Outcome.UNCLEAR),
        ([np.nan, np.nan], Outcome.NOT_MEASURABLE),
    ],
)
def test_a_premise_of_runs_holds_if_every_seed_does(values, word):
    found = each_above(np.array(values), 0.1)
    assert found.outcome is word
    assert found.p_value is None


def test_its_range_is_that_of_the_seeds():
    found = span(np.array([0.3, 0.1, 0.8]))
    assert (found.low, found.point, found.high, found.n) == (0.1, pytest.approx(0.4), 0.8, 3)


def test_what_holm_takes_back_is_said_in_plain_words():
    costs = {
        arm: {("cost", "seconds"): seconds, ("cost", "bytes"): 1e6} for arm, seconds in (("own", 2e-3), ("none", 1e-3))
    }
    alone = judged("cost", compared(costs))
    assert alone.outcome is Outcome.HOLDS
    doubtful = replace(alone, p_value=0.022)
    others = [replace(doubtful, p_value=0.2, outcome=Outcome.UNCLEAR) for _ in range(4)]
    together = adjust([doubtful, *others])[0]
    assert together.outcome is Outcome.UNCLEAR
    said = corrected(together, doubtful)
    assert "Alone it would be clear; among all answers together it may be chance (p = 0.11, Holm)" in said
    assert "'holds'" not in said
    assert "Alone" not in corrected(others[0], others[0])


def test_intervals_are_of_one_answer_and_words_of_all_together_and_that_is_said():
    verdict = replace(judged("speed", compared({})), outcome=Outcome.HOLDS, p_value=0.01)
    alone, together = [replace(verdict)], adjust([verdict, verdict, verdict])
    assert how_to_read(alone) == "In brackets: the interval of 95 % over the seeds, of each answer taken alone"
    assert "The words are stricter, for 3 answers are read together" in how_to_read(together)
    assert how_to_read([replace(verdict, outcome=Outcome.NOT_MEASURABLE)]) == ""
