"""From a comparison to its page: words for arms, the command that runs it again, and what is described."""

import shlex

import pytest

from kit import planted_pages
from normscope.comparing.page import command_of, made_arm, write_page
from normscope.surgery import ArmReport


def test_the_page_holds_questions_arms_and_notes(tmp_path):
    text = write_page(tmp_path / "page.html", planted_pages.page()).read_text(encoding="utf-8")
    for words in ("A note.", "The network as it is.", "2 norms changed, 1 left.", "17.2 % lower", "T."):
        assert words in text
    assert text.count('<section id="question-') == 6
    assert "all runs, one after the other" in text
    assert 'id="again"' not in text  # without a command there is none to run
    with_one = write_page(tmp_path / "two.html", planted_pages.page(command="normscope compare a.py:f"))
    assert "normscope compare a.py:f" in with_one.read_text(encoding="utf-8")


def test_an_answer_that_is_described_has_no_word(tmp_path):
    described = planted_pages.shown(described=True)
    assert {each.answer.word for each in described} == {""}
    assert {each.answer.word for each in planted_pages.shown()} > {"holds", "opposite", "not measurable"}
    text = write_page(tmp_path / "page.html", planted_pages.page(described=True)).read_text(encoding="utf-8")
    assert 'class="badge described"' in text
    assert 'class="badge holds"' not in text


@pytest.mark.parametrize(
    ("report", "summary"),
    [
        (ArmReport("own"), "The network as it is."),
        (ArmReport("own", difference=0.0), "The network as it is."),
        (
            ArmReport("none", changes=("1: A -> nothing", "4: B -> nothing"), relation="different", difference=0.99),
            "2 norms changed. At the start its function is different (outputs differ by 0.99 of their length).",
        ),
        (
            ArmReport("rescaled", changes=("1: A -> nothing",), left=("4: why",), relation="rescaled"),
            "1 norm changed, 1 left. At the start its function is that of the network as it is, rescaled.",
        ),
        (
            ArmReport("batch", kept=("1",), changes=("4: A -> B",), functional=("f", "g"), relation="equal"),
            "1 norm changed, 1 kept, 2 called as functions. At the start its function is equal to that of the network "
            "as it is.",
        ),
        (
            ArmReport("mine", relation="different"),
            "No norm changed. At the start its function is different.",
        ),
    ],
)
def test_the_report_of_an_arm_becomes_sentences_and_nothing_of_it_is_lost(report, summary):
    made = made_arm("name", "words", str(report.with_notes(["a note"])))
    assert made.summary == summary
    parts = [*map(str, (*report.changes, *report.kept, *report.left, *report.functional)), "a note"]
    assert len(made.lines) == len(parts)
    for line, part in zip(made.lines, parts, strict=True):
        assert line.endswith(part)


def test_an_arm_without_a_report_and_a_report_of_another_form_are_taken_as_they_are():
    assert made_arm("b", "of b", "").summary == ""
    assert "did not learn" in made_arm("rescaled", "w", "").summary
    assert made_arm("b", "of b", "something else\n  more").summary == "something else"


def config(**changed):
    arm = {"words": "", "made_by": "train.py:make_case"}
    arms = [{"name": "own", "does": "own"} | arm, {"name": "none", "does": "none"} | arm]
    asked = {"steps": None, "seeds": 3, "rates": [1.0], "batches": 8, "budget": None}
    return {"arms": arms, "asked": asked, "plan": {"seeds": 3, "steps": 200}, "questions": ["speed"], **changed}


def asked(**changed):
    return {"asked": config()["asked"] | changed}


ARM = {"words": "", "does": "own"}


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ({}, ["train.py:make_case", "--seeds", "3"]),
        (asked(rates=[0.3, 1.0, 3.0], batches=4, steps=50),
         ["train.py:make_case", "--seeds", "3", "--steps", "50", "--rates", "0.3,1,3", "--batches", "4"]),
        (asked(budget=600.0, seeds=None), ["train.py:make_case", "--seeds", "3", "--steps", "200"]),
        ({"arms": [{"name": n, "does": n, "made_by": "a b.py:f"} for n in ("own", "layer")]},
         ["a b.py:f", "--arms", "own,layer", "--seeds", "3"]),
        ({"arms": [{"name": n, "made_by": f"{n}.py:f", **ARM} for n in ("bn", "plain")]},
         ["bn=bn.py:f", "plain=plain.py:f", "--seeds", "3"]),
        ({"arms": [{"name": "own", "made_by": "make_case", **ARM}, {"name": "none", "made_by": "make_case", **ARM}]},
         None),
        ({"arms": [{"name": "own", "made_by": "a.py:f", **ARM}, {"name": "mine", "made_by": "a.py:f", **ARM}]}, None),
    ],
)  # fmt: skip
def test_the_command_asks_for_the_same_again_where_a_command_can(changed, options):
    command = command_of(config(**changed), ["speed"])
    assert command == ("" if options is None else shlex.join(["normscope", "compare", *options]))


def test_the_command_names_the_questions_where_not_all_were_asked():
    assert command_of(config(), ["speed", "shift"]).endswith("--questions speed")
