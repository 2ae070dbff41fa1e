"""Every sentence of the texts leads to studies that exist, and every study to a sentence, or it is an extension."""

import pytest

from normscope import studies

ALL = studies.all()
SLUGS = {study.CODE for study in ALL}
TEXTS = studies.texts()


def test_sentences_and_errata_name_studies_that_exist():
    for sentence in TEXTS.sentences:
        assert set(sentence.studies) <= SLUGS, sentence.says
        assert len(set(sentence.studies)) == len(sentence.studies)
        assert bool(sentence.studies) != bool(sentence.note), sentence.says
        assert sentence.place
        assert len(sentence.says) <= 120
        assert sentence.says.endswith((".", "?"))
    for erratum in TEXTS.errata:
        assert set(erratum.studies) <= SLUGS, erratum.stated
        assert len(erratum.holds) <= 260
        assert erratum.figure if erratum.studies else not erratum.figure
        assert "note" != erratum.where not in TEXTS.titles


def test_all_four_texts_are_there_each_with_sentences_and_errata():
    assert len(set(TEXTS.titles.values())) == 4
    assert {sentence.text for sentence in TEXTS.sentences} == set(TEXTS.titles.values())
    assert set(TEXTS.titles.values()) <= {erratum.where for erratum in TEXTS.errata}


@pytest.mark.parametrize("study", ALL, ids=lambda study: study.CODE)
def test_a_study_judges_a_sentence_or_says_that_it_is_an_extension(study):
    answered = TEXTS.judged_by(study.CODE)
    assert bool(answered) != study.EXTENSION
    cited = {title for name, title in TEXTS.titles.items() if any(one.startswith(name) for one in study.SOURCES)}
    assert cited <= set(answered), "it cites a text of which no sentence leads to it"


def test_the_studies_of_a_text_are_found_by_its_title():
    (gradient,) = [title for name, title in TEXTS.titles.items() if name == "Q&A on the gradient"]
    assert TEXTS.judged_by("dropout-variance-shift") == (gradient,)
    assert TEXTS.judged_by("bn-only-training") == ()


def test_all_thirty_two_cards_are_there_and_a_further_study_has_a_number_of_its_own():
    assert [study.CARD for study in ALL][:32] == list(range(1, 33))
    assert len({study.CARD for study in ALL}) == len(ALL)
