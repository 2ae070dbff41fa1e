"""Every sentence of the texts leads to studies that exist, and every study to a sentence or to a place apart."""

from normscope import studies
from normscope.studies import texts

SLUGS = {study.CODE for study in studies.all()}


def test_sentences_and_errata_name_studies_and_texts_that_exist():
    for sentence in texts.SENTENCES:
        assert sentence.text in texts.TEXTS
        assert sentence.studies
        assert set(sentence.studies) <= SLUGS
    for erratum in texts.ERRATA:
        assert erratum.studies
        assert set(erratum.studies) <= SLUGS
    assert {sentence.text for sentence in texts.SENTENCES} == set(texts.TEXTS)


def test_every_study_answers_a_sentence_or_is_an_extension():
    answered = {slug for sentence in texts.SENTENCES for slug in sentence.studies}
    assert answered | set(texts.EXTENSIONS) == SLUGS
    assert not answered & set(texts.EXTENSIONS)
    assert texts.texts_of("dropout-variance-shift") == ("gradient",)
    assert texts.texts_of("bn-only-training") == ()


def test_all_thirty_two_cards_are_there():
    assert [study.CARD for study in studies.all()] == list(range(1, 33))
