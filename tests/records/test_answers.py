"""Sentences composed of the words of contrasts: by rules, from verdicts whose words are known."""

import dataclasses
import itertools

import pytest
from hypothesis import given, strategies as st

from normscope.records import Condition, Estimate, Outcome, Verdict, answer, standing, tried
from normscope.records.answers import headline, separating

HOLDS, OPPOSITE, NONE = Outcome.HOLDS, Outcome.OPPOSITE, Outcome.NO_EFFECT
UNCLEAR, LOST = Outcome.UNCLEAR, Outcome.NOT_MEASURABLE


def contrast(outcome, *, claim="It is so.", amount="2 times more", why="", **conditions):
    effect = Estimate(0.5, 0.4, 0.6, 0.95, 10, "t")
    listed = tuple(Condition(name, value) for name, value in conditions.items())
    words = {"finding": f"training takes {amount} steps", "amount": amount, "why": why, "conditions": listed}
    return Verdict("s", claim, outcome, "Steps", effect, 0.1, "R.", here="dense networks, digits", **words)


def claim(first, *others):
    return dataclasses.replace(first, parts=others)


def test_the_networks_and_the_data_are_part_of_the_sentence_but_of_no_identity():
    assert answer(contrast(HOLDS)) == "Yes: training takes 2 times more steps. Here: dense networks, digits."
    assert answer(contrast(Outcome.EXACT)) == "Exact: training takes 2 times more steps."
    assert (
        headline(contrast(LOST, why="no seed ended")) == "Not measurable: no seed ended. Here: dense networks, digits."
    )
    assert "About 40 seeds would decide." in headline(contrast(UNCLEAR, why="about 40 seeds would decide"))


@pytest.mark.parametrize("word", [HOLDS, OPPOSITE, NONE])
def test_where_no_decided_word_differs_the_claim_has_that_word(word):
    deep = contrast(word, depth="20 layers")
    lost = contrast(LOST, depth="40 layers", why="no seed ended")
    assert standing(claim(contrast(word, depth="3 layers"), deep, lost)) == word.value


def test_a_condition_that_alone_changes_the_word_is_named():
    verdict = claim(
        contrast(HOLDS, depth="3 layers", rate="0.1"),
        contrast(HOLDS, depth="3 layers", rate="1"),
        contrast(NONE, depth="20 layers", rate="0.1", amount="1.1 times more"),
        contrast(OPPOSITE, depth="20 layers", rate="1"),
    )
    assert separating(verdict) == ("depth",)
    assert standing(verdict) == "depends on the depth"
    assert "But no effect that matters with 20 layers (1.1 times more)." in headline(verdict)
    assert "Also tried: Holds with 1 (2 times more). Opposite with 20 layers, 1 (2 times more)." in answer(verdict)


def test_words_that_differ_without_one_condition_behind_them_are_mixed():
    verdict = claim(
        contrast(HOLDS, depth="3 layers", rate="0.1"),
        contrast(OPPOSITE, depth="20 layers", rate="1"),
        contrast(HOLDS, depth="40 layers", rate="1"),
    )
    assert standing(verdict) == "mixed: holds under 2 of 3 conditions"


def test_two_conditions_are_both_named_and_an_undecided_word_tells_nothing():
    verdict = claim(
        contrast(HOLDS, depth="3 layers", rate="0.1"),
        contrast(OPPOSITE, depth="20 layers", rate="0.1"),
        contrast(NONE, depth="3 layers", rate="1"),
        contrast(UNCLEAR, depth="40 layers", rate="0.1"),
    )
    assert standing(verdict) == "depends on the depth and the rate"
    assert standing(claim(contrast(UNCLEAR, depth="3 layers"), contrast(HOLDS, depth="20 layers"))) == "unclear"


def test_another_claim_is_not_a_condition_of_this_one():
    other = contrast(OPPOSITE, claim="Another thing is so.", depth="20 layers")
    verdict = claim(contrast(HOLDS, depth="3 layers"), other)
    assert tried(verdict) == (verdict,)
    assert standing(verdict) == "holds"
    assert "Also tried" not in answer(verdict)


@given(st.lists(st.sampled_from(list(Outcome)[:5]), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_standing_does_not_depend_on_the_order_of_what_was_also_tried(words, random):
    first, *others = (contrast(word, depth=f"{k} layers") for k, word in enumerate(words))
    shuffled = random.sample(others, len(others))
    assert standing(claim(first, *shuffled)) == standing(claim(first, *others))


def test_a_headline_never_reads_better_than_its_own_word():
    """Whatever else was tried: only a headline that holds begins with a yes."""
    for words in itertools.product(list(Outcome)[:5], repeat=2):
        verdict = claim(contrast(words[0], depth="a", why="w"), contrast(words[1], depth="b"))
        assert answer(verdict).startswith("Yes") == (words[0] is HOLDS)
        assert standing(verdict) != "holds" or words[0] is HOLDS
