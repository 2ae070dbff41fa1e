"""The page of questions: numbers from the evidence, and no answer that its words do not bear."""

import dataclasses
import json

import pytest

from normscope import studies
from normscope._errors import DataError
from normscope.explain import committed
from normscope.records import Estimate, Outcome, Question, Statement, Verdict
from normscope.report import (
    CondensedEvidence,
    CondensedStudy,
    Picture,
    disagreements,
    questions_page,
    write_questions,
)


def verdict(name, outcome, amount):
    effect = Estimate(1.8, 1.5, 2.1, 0.95, 10, "paired t", "log-ratio")
    return Verdict(
        "speed", "C.", outcome, "e", effect, 0.4, "R.", name=name, amount=amount, here="dense networks, digits"
    )


def evidence(outcome=Outcome.HOLDS):
    part = dataclasses.replace(verdict("tanh", Outcome.NO_EFFECT, "1.04 times more (0.8 to 1.4)"), primary=False)
    headline = dataclasses.replace(verdict("sigmoid", outcome, "8.6 times fewer (6.5 to 11.3)"), parts=(part,))
    spec = {
        "mark": "point",
        "data": {"values": [{"x": 1, "y": 2}]},
        "encoding": {"x": {"field": "x"}, "y": {"field": "y"}},
    }
    picture = Picture("accuracy", "Accuracy", "It rises.", "A rising line.", json.dumps(spec))
    study = CondensedStudy(
        slug="speed", card=1, title="T.", topic="speed", texts=(), verdict=headline, theory=(), preset="quick",
        data="digits", device="cpu", seeds=(0, 1), seconds=1.0, normscope="0", torch="2", cores=2, cpu="c",
        command="normscope study run speed", picture=picture,
    )  # fmt: skip
    return CondensedEvidence("L.", (), (study,), (), ())


ASKED = Question(
    "Is it faster, and where?",
    "Q&A on the layer",
    "With sigmoids training takes {speed} steps;\nwith tanh {speed / tanh}.",
    (Statement("speed", "", "holds"), Statement("speed", "tanh", "no effect that matters")),
    "speed",
    "normscope study run speed --data mine.npz",
)


def test_numbers_networks_picture_and_command_are_put_in(tmp_path):
    path = write_questions(tmp_path / "questions.md", [ASKED], evidence())
    text = path.read_text()
    assert "- [Is it faster, and where?](#is-it-faster-and-where)" in text
    assert "takes 8.6 times fewer (6.5 to 11.3) steps; with tanh 1.04 times more (0.8 to 1.4)." in text
    assert "Measured on dense networks, digits: `speed`." in text
    assert "![A rising line.](images/questions/speed.svg)" in text
    assert "normscope study run speed --data mine.npz" in text
    assert (tmp_path / "images" / "questions" / "speed.svg").read_text().startswith("<svg")
    assert "images" not in questions_page([ASKED], evidence())


def test_the_text_that_asks_is_named_where_there_is_one():
    assert "Asked in: Q&A on the layer." in questions_page([ASKED], evidence())
    assert "Asked in" not in questions_page([dataclasses.replace(ASKED, text="")], evidence())


def test_what_the_atlas_answers_stands_under_the_same_question():
    asked, said = dataclasses.replace(ASKED, atlas="speed"), {"speed": "*Is it?* Holds on all.", "cost": "*So?* No."}
    text = questions_page([asked, dataclasses.replace(ASKED, asks="Other?")], evidence(), atlas=said)
    assert text.count("On the networks of [the atlas](atlas.md): *Is it?* Holds on all.") == 1
    assert "So?" not in text
    assert "atlas" not in questions_page([asked], evidence())
    with pytest.raises(DataError, match="no network of the atlas answers 'speed'"):
        questions_page([asked], evidence(), atlas={})


@pytest.mark.parametrize("outcome", [each for each in Outcome if each is not Outcome.HOLDS])
def test_an_answer_whose_word_has_changed_is_not_written(tmp_path, outcome):
    with pytest.raises(DataError, match="takes speed /  to be 'holds'"):
        write_questions(tmp_path / "questions.md", [ASKED], evidence(outcome))
    assert not list(tmp_path.iterdir())


def test_missing_contrasts_and_numbers_without_a_word_are_named():
    gone = dataclasses.replace(ASKED, rests_on=(*ASKED.rests_on, Statement("speed", "deep", "holds")))
    (line,) = disagreements([gone], evidence())
    assert "no contrast 'deep' of speed" in line
    bold = dataclasses.replace(ASKED, rests_on=ASKED.rests_on[:1])
    (line,) = disagreements([bold], evidence())
    assert "{speed / tanh} and does not rest on its word" in line


def test_the_answers_of_the_package_agree_with_its_evidence():
    """The hand-written sentences are true of the committed numbers."""
    assert disagreements(studies.texts().questions, committed()) == []
