"""One question of the atlas is answered without the others, and as among the others."""

import json
from importlib.resources import files

import pytest

from normscope import atlas, comparing
from normscope.stats import adjust

FOUND = atlas.committed()


def test_an_answer_alone_is_the_answer_among_all(kept):
    every = atlas.answers_of(kept)
    for answer in every:
        assert atlas.answers_of(kept, {answer.question.code}) == [answer]
    assert atlas.answers_of(kept, {"no-such-question"}) == []


def test_what_was_also_tried_in_other_questions_is_not_judged(kept, monkeypatch):
    seen = []
    monkeypatch.setattr("normscope.atlas.answers.adjust", lambda alone: seen.append(alone) or adjust(alone))
    atlas.answers_of(kept, {"gradients"})
    (alone,) = seen
    assert len(alone) == len(kept.questions)
    assert [verdict.study for verdict in alone if verdict.parts] == ["gradients"]


@pytest.mark.parametrize("code", ["gradients", "cost"])
def test_a_row_alone_is_the_row_of_the_table(code):
    assert FOUND.row(code) == next(row for row in FOUND.rows if row.code == code)


def test_all_questions_are_asked_and_an_unknown_question_has_no_row():
    assert [row.code for row in FOUND.rows] == [question.CODE for question in comparing.all_questions()]
    assert FOUND.row("no-such-question") is None


def test_an_answer_has_the_question_the_quantity_and_a_list_of_the_sentences():
    for row in FOUND.rows:
        asked, listed = row.answer.split("\n\n")
        assert asked == f"*{row.asks}* {row.source}"
        assert " ".join(line.removeprefix("- ") for line in listed.splitlines()) == row.sentence
        assert all(line.startswith("- ") for line in listed.splitlines())


def test_no_committed_file_names_a_path():
    for file in files("normscope.atlas").joinpath("data").iterdir():
        said = [*strings(json.loads(file.read_text(encoding="utf-8")))]
        assert not [text for text in said if text.startswith(("/", "~")) or ".py" in text or "://" in text]


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)
