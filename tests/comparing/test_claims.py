"""Claims of studies on a network of the user's own: which question asks each, and what an answer means for it."""

from collections import Counter

import pytest

import normscope as ns
from kit import set_ups
from normscope import comparing, studies
from normscope.records import Outcome
from normscope.studies import CaseQuestion
from normscope.surgery import ARMS

UNITS = studies.all()
QUESTIONS = {question.CODE for question in comparing.all_questions()}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.CODE)
def test_every_study_names_a_question_and_arms_that_there_are_or_says_why_none(unit):
    asked = unit.ON_A_CASE
    if isinstance(asked, str):
        assert asked != studies.AbstractStudy.ON_A_CASE, "say which question asks the claim, or why none does"
        assert asked[0].islower(), "it goes on behind a colon"
        assert not asked.endswith(".")
        return
    assert asked.question in QUESTIONS
    assert set(asked.arms) <= ARMS.keys()
    assert asked.arms[0] != asked.arms[1]
    assert 1.0 in asked.rates  # what is judged at the learning rate of the set-up needs it
    assert not asked.differs.endswith(".")


def test_every_arm_without_norms_is_asked_by_one_comparison_and_every_pair_by_its_own():
    found = comparing.asked_claims()
    counts = Counter(each.arms for each in found)
    assert set(counts.values()) == {1}
    slugs = [claim.study.CODE for each in found for claim in each.claims]
    assert sorted(slugs) == sorted(unit.CODE for unit in UNITS if isinstance(unit.ON_A_CASE, CaseQuestion))
    assert len(slugs) >= 14
    for each in found:
        assert each.questions == [code for code in each.questions if code in QUESTIONS]
        assert {claim.asked.question for claim in each.claims} == set(each.questions)
        assert set(each.rates) == {rate for claim in each.claims for rate in claim.asked.rates}


def test_a_claim_that_no_question_asks_is_refused_with_its_reason():
    with pytest.raises(ns.UsageError, match=r"^conditioning cannot be asked of a network of your own: no question"):
        comparing.asked_claims(["vanishing-at-init", "conditioning"])
    with pytest.raises(ns.UsageError, match="did you mean"):
        comparing.asked_claims(["vanishing-at-innit"])


@pytest.mark.parametrize("outcome", Outcome)
def test_a_word_speaks_for_the_claim_against_it_or_does_not_decide(outcome):
    plain, as_well = CaseQuestion("speed"), CaseQuestion("speed", in_favour=(Outcome.HOLDS, Outcome.NO_EFFECT))
    said = {asked: asked.says(outcome).removeprefix("This ").split()[1] for asked in (plain, as_well)}
    if outcome in (Outcome.UNCLEAR, Outcome.NOT_MEASURABLE):
        assert set(said.values()) == {"not"}
    if outcome is Outcome.HOLDS:
        assert set(said.values()) == {"for"}
    if outcome is Outcome.OPPOSITE:
        assert set(said.values()) == {"against"}
    if outcome is Outcome.NO_EFFECT:
        assert said == {plain: "against", as_well: "for"}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Return a function that compares a set-up's arms by two questions, in four steps of three seeds."""

    def run(make, arms):
        out = tmp_path_factory.mktemp("claims")
        questions = ["gradients", "speed"]
        return ns.compare(make, arms, seeds=3, steps=4, questions=questions, workers=1, out=out)

    return run


def test_it_says_question_answer_and_meaning(compared):
    found = compared(set_ups.make_case, ["own", "none"])
    (asked,) = comparing.asked_claims(["vanishing-at-init", "fewer-iterations"])
    assert asked.name == "own-none"
    by_slug = {claim.study.CODE: [*claim.sentences(found)] for claim in asked.claims}
    question, sentence, means = by_slug["fewer-iterations"]
    answer = next(each for each in found.answers_in_order if each.question.CODE == "speed")
    assert question == (
        f"Asked by question 5 of a comparison: {answer.asks} The question differs from the study: the training loss in "
        "place of iterations to an accuracy."
    )
    assert sentence == answer.sentence
    assert means == CaseQuestion("speed").says(answer.verdict.outcome)
    assert "differs from the study" not in by_slug["vanishing-at-init"][0]


def test_norms_that_are_no_batch_norms_are_told(compared):
    found = compared(set_ups.make_layer_norm_case, ["own", "none"])
    (asked,) = comparing.asked_claims(["vanishing-at-init"])
    *_, last = asked.claims[0].sentences(found)
    assert last == "The claim is about batch norm, and the norms of this network are LayerNorm: it is not decided here."
    assert asked.claims[0].means(found) == last


def test_only_a_comparison_without_the_network_as_it_is_can_be_beside_it():
    for each in comparing.asked_claims():
        other = each.beside_itself
        assert (other is None) is ("own" in each.arms)
        assert other is None or (other.arms, other.claims) == ((each.arms[0], "own"), each.claims)
