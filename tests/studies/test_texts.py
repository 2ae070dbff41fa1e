"""Every sentence of the texts leads to contrasts that exist, and every study to a sentence, or it is an extension."""

import pytest

from kit.planted_runs import planted_run
from normscope import studies
from normscope.explain import committed
from normscope.records import Answer, Estimate, Outcome, Verdict, outcome_of

ALL = studies.all()
BY_SLUG = {study.CODE: study for study in ALL}
TEXTS = studies.texts()


def contrast_of(study, name):
    """A study's contrast by its name, or its headline."""
    listed = BY_SLUG[study].ordered(planted_run(study))
    found = [contrast for contrast in listed if contrast.name == name] if name else listed[:1]
    assert found, f"{study} has no contrast {name!r}: {[contrast.name for contrast in listed]}"
    return found[0]


def test_sentences_and_errata_are_whole():
    for sentence in TEXTS.sentences:
        assert len(set(sentence.answers)) == len(sentence.answers)
        assert sentence.answers or sentence.note, sentence.says
        assert sentence.place
        assert len(sentence.says) <= 120
        assert sentence.says.endswith((".", "?"))
    for erratum in TEXTS.errata:
        assert set(erratum.studies) <= BY_SLUG.keys(), erratum.stated
        assert len(erratum.holds) <= 260
        assert erratum.figure if erratum.studies else not erratum.figure
        assert "note" != erratum.where not in TEXTS.titles


@pytest.mark.parametrize("sentence", TEXTS.sentences, ids=lambda sentence: sentence.says[:50])
def test_a_sentence_names_the_contrasts_that_test_it_and_of_what_kind_they_are(sentence):
    for answer in sentence.answers:
        contrast = contrast_of(answer.study, answer.contrast)
        assert (contrast.exact_within is not None) == (answer.kind == "algebra"), answer
        assert answer.kind in ("algebra", "measurement")


@pytest.mark.parametrize("question", TEXTS.questions, ids=lambda question: question.asks[:50])
def test_a_question_rests_on_contrasts_that_exist_and_words_that_they_can_have(question):
    for statement in question.rests_on:
        contrast = contrast_of(statement.study, statement.contrast)
        word = Outcome(statement.word)
        assert not word.of_identity or contrast.exact_within is not None
        assert word is not Outcome.NO_EFFECT or contrast.equal_within is None
    assert question.picture in BY_SLUG
    assert question.asks.endswith("?")
    assert question.command.startswith("normscope ")


@pytest.mark.parametrize(
    ("outcome", "denied"),
    [
        (Outcome.HOLDS, Outcome.OPPOSITE),
        (Outcome.OPPOSITE, Outcome.HOLDS),
        (Outcome.NO_EFFECT, Outcome.HOLDS),
        (Outcome.UNCLEAR, Outcome.UNCLEAR),
        (Outcome.NOT_MEASURABLE, Outcome.NOT_MEASURABLE),
        (Outcome.EXACT, Outcome.FALSE),
        (Outcome.FALSE, Outcome.EXACT),
    ],
)
def test_a_sentence_has_the_word_of_its_contrast_and_a_denial_the_word_turned_round(outcome, denied):
    effect = Estimate(0.5, 0.4, 0.6, 0.95, 10, "t")
    part = Verdict("s", "c", outcome, "e", effect, 0.1, "r", name="deep", primary=False)
    verdict = Verdict("s", "c", Outcome.UNCLEAR, "e", effect, 0.1, "r", name="shallow", parts=(part,))
    assert outcome_of(Answer("s", "deep"), verdict) is outcome
    assert outcome_of(Answer("s", "deep", negated=True), verdict) is denied
    assert outcome_of(Answer("s"), verdict) is Outcome.UNCLEAR
    assert outcome_of(Answer("s", "wide"), verdict) is None


def test_all_four_texts_are_there_each_with_sentences_and_errata():
    assert len(set(TEXTS.titles.values())) == 4
    assert {sentence.text for sentence in TEXTS.sentences} == set(TEXTS.titles.values())
    assert {question.text for question in TEXTS.questions if question.text} == set(TEXTS.titles.values())
    assert set(TEXTS.titles.values()) <= {erratum.where for erratum in TEXTS.errata}


@pytest.mark.parametrize("study", ALL, ids=lambda study: study.CODE)
def test_a_study_judges_a_sentence_or_says_that_it_is_an_extension(study):
    answered = TEXTS.judged_by(study.CODE)
    assert bool(answered) != study.EXTENSION
    cited = {title for name, title in TEXTS.titles.items() if any(one.startswith(name) for one in study.SOURCES)}
    assert cited <= set(answered), "it cites a text of which no sentence leads to it"


def test_the_studies_of_a_text_are_found_by_its_title():
    (gradient,) = [title for name, title in TEXTS.titles.items() if name == "Q&A on the gradient"]
    assert gradient in TEXTS.judged_by("vanishing-at-init")
    assert TEXTS.judged_by("bn-only-training") == ()


def test_all_thirty_two_cards_are_there_and_a_further_study_has_a_number_of_its_own():
    assert [study.CARD for study in ALL][:32] == list(range(1, 33))
    assert len({study.CARD for study in ALL}) == len(ALL)


#: What was measured of sentences whose rows once had the word of another contrast.
MEASURED = {
    "Inputs in different units make training slow": {"holds"},
    "Features on one scale make training fast": {"holds"},
    "Normalizing is not a linear transformation": {"holds", "exact"},
    "Gamma and beta leave the network able to produce": {"exact", "false"},
    "The only help to the gradient is the noise": {"opposite"},
    "With batch norm the quadratic term can no longer": {"false"},
    "Does it mitigate vanishing or exploding gradients": {"holds", "opposite"},
    "The order should be norm, weights, activation": {"exact", "false"},
}


@pytest.mark.parametrize("says", MEASURED)
def test_a_sentence_has_the_words_of_what_was_measured(says):
    verdicts = {study.slug: study.verdict for study in committed().studies}
    (sentence,) = (each for each in TEXTS.sentences if each.says.startswith(says))
    assert {outcome_of(answer, verdicts[answer.study]).value for answer in sentence.answers} == MEASURED[says]
