"""From a comparison to its page: words for arms, the command that runs it again, and what is described."""

import json
import shlex

import pytest
import torch
from torch import nn

import normscope
from kit import planted_pages
from normscope.comparing.page import command_of, made_arm, write_page
from normscope.surgery import ArmReport, Change, FunctionalCall, Skip


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


CALLS = (FunctionalCall("", "layer_norm", "net.py:3"), FunctionalCall("a", "group_norm", "net.py:9"))


@pytest.mark.parametrize(
    ("report", "summary"),
    [
        (ArmReport("own"), "The network as it is."),
        (ArmReport("own", difference=0.0), "The network as it is."),
        (
            ArmReport(
                "none",
                changes=(Change("1", "A -> nothing"), Change("4", "B -> nothing", "kept", {"shift": 0.5})),
                relation="different",
                difference=0.99,
            ),
            "2 norms changed. At the start its function is different (outputs differ by 0.99 of their length).",
        ),
        (
            ArmReport(
                "rescaled", changes=(Change("1", "A -> nothing"),), left=(Skip("4", "why"),), relation="rescaled"
            ),
            "1 norm changed, 1 left. At the start its function is that of the network as it is, rescaled.",
        ),
        (
            ArmReport("batch", kept=("1",), changes=(Change("4", "A -> B"),), functional=CALLS, relation="equal"),
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
    made = made_arm("name", "words", report.with_notes(["a note"]))
    assert made.summary == summary
    assert ArmReport.from_json(json.loads(json.dumps(report.as_json()))) == report
    parts = [*map(str, (*report.changes, *report.kept, *report.left, *report.functional)), "a note"]
    assert len(made.lines) == len(parts)
    for line, part in zip(made.lines, parts, strict=True):
        assert line.endswith(part)


def test_an_arm_without_a_report_has_no_summary_but_that_it_was_added():
    assert made_arm("b", "of b", None).summary == ""
    assert "did not learn" in made_arm("rescaled", "w", None).summary


def config(**changed):
    arm = {"words": "", "made_by": "train.py:make_case"}
    arms = [{"name": "own", "does": "own"} | arm, {"name": "none", "does": "none"} | arm]
    asked = {"steps": None, "rates": [1.0], "batches": 8, "budget": None}
    return {"arms": arms, "asked": asked, "plan": {"steps": 200, "questions": ["speed"]}, **changed}


def asked(**changed):
    return {"asked": config()["asked"] | changed}


ARM = {"words": "", "does": "own"}


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ({}, ["train.py:make_case", "--seeds", "3"]),
        (asked(rates=[0.3, 1.0, 3.0], batches=4, steps=50),
         ["train.py:make_case", "--seeds", "3", "--steps", "50", "--rates", "0.3,1,3", "--batches", "4"]),
        (asked(budget=600.0), ["train.py:make_case", "--seeds", "3", "--steps", "200"]),
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
    command = command_of(config(**changed), 3, ["speed"])
    assert command == ("" if options is None else shlex.join(["normscope", "compare", *options]))


def test_the_command_names_the_questions_where_not_all_were_asked():
    assert command_of(config(), 5, ["speed", "shift"]).endswith("--questions speed")


def make_case():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    data = torch.utils.data.TensorDataset(torch.randn(16, 3), torch.arange(16) % 2)
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return normscope.Case(model, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), loader,
                          optimizer)  # fmt: skip


def test_a_run_of_one_seed_is_described_wherever_it_is_shown(tmp_path):
    found = normscope.compare(make_case, seeds=1, steps=3, questions=["speed"], workers=1, out=tmp_path / "run")
    (answer,) = found.answers_in_order
    assert answer.described
    assert answer.sentence.startswith("Described, not judged (1 seed): the training loss is ")
    assert "no bound" not in answer.sentence
    assert found.answers()["word"].to_list() == [""]
    assert found.document()["answers"][0]["word"] is None
    caption = found.figures(answer)[0].caption
    assert " with its norms, " in caption
    assert "with with" not in caption
    text = found.report().read_text(encoding="utf-8")
    assert 'class="badge described"' in text
    assert 'id="again"' not in text  # the function came from Python
    names = [path.name for path in found.export(tmp_path / "export", ["csv", "latex", "svg"])]
    assert names == ["answers.csv", "contrasts.csv", "records.csv", "answers.tex", "speed-training-loss.svg"]
