"""Every unit is found by every name it has."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import normscope
from kit import report_pages
from normscope import atlas, explain
from normscope._errors import StoreError, UsageError
from normscope._unit import discover
from normscope.explain import unit
from normscope.layers import AbstractLayer
from normscope.report import CondensedEvidence, CondensedStudy


@pytest.mark.parametrize("name", ["noisy-batchnorm", "gradient_flow", "batch_norm_2d"])
def test_explain_knows_every_kind_of_unit(run, name):
    assert run("explain", name).stdout.startswith(f"{name}\n")
    document = json.loads(run("explain", name, "--json").stdout)
    found = unit(name)
    expected = {
        "code": name,
        "title": found.title(),
        "sources": list(found.SOURCES),
        "page": found.page(),
    }
    assert expected.items() <= document.items()
    assert set(document) - set(expected) <= {"standing", "effect", "answer", "here", "measured", "margin", "on_a_case"}


def test_explain_knows_every_unit():
    layers = list(discover(normscope.layers, AbstractLayer))
    named = [(f"study:{found.CODE}", found) for found in normscope.studies.all()]
    named += [(name, found) for found in normscope.rules.all() for name in (found.CODE, found.SLUG)]
    named += [(f"probe:{found.CODE}", found) for found in normscope.probes.all()]
    named += [(found.__name__, found) for found in (*normscope.probes.all(), *layers)]
    named += [(f"layer:{found.CODE}", found) for found in layers]
    assert len(named) > 100
    for name, expected in named:
        found = unit(name)
        assert found.CODE == expected.CODE
        assert (found if isinstance(found, type) else type(found)) is (
            expected if isinstance(expected, type) else type(expected)
        )
        assert all(text.strip() for text in found.page().values())


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("update-ratio", "update_ratio"),
        ("Probe:Statistics-Gap", "statistics_gap"),
        ("updateratio", "update_ratio"),
        ("study:NOISY_BATCHNORM", "noisy-batchnorm"),
        ("RULE:ns109", "NS109"),
        ("Immature_Statistics", "NS109"),
        ("probe:CONDITIONING", "conditioning"),
        ("batch-norm-2d", "batch_norm_2d"),
    ],
)
def test_case_hyphens_and_underscores_do_not_matter(typed, code):
    assert code == unit(typed).CODE


def test_a_name_that_two_kinds_share_is_asked_about():
    with pytest.raises(UsageError, match="say study:conditioning or probe:conditioning"):
        unit("conditioning")
    with pytest.raises(UsageError, match="no probe is called 'noisy-batchnorm': `normscope probes` shows all names"):
        unit("probe:noisy-batchnorm")  # a study
    with pytest.raises(UsageError, match="say study:CONDITIONING or probe:CONDITIONING"):
        unit("CONDITIONING")


def test_a_question_says_what_the_networks_of_the_atlas_answer(run):
    row = atlas.committed().row("gradients")
    text = run("explain", "gradients").stdout
    assert f"Atlas\n-----\n{row.answer.replace('*', '')}\n" in text
    assert text.index("Atlas\n") < text.index("\nMethod\n")
    assert json.loads(run("explain", "gradients", "--json").stdout)["atlas"] == row.answer


def test_a_study_leads_to_the_question_of_a_comparison_that_asks_the_same(run):
    assert "`normscope explain smoothness`" in run("explain", "landscape-smoothness").stdout
    assert json.loads(run("explain", "landscape-smoothness", "--json").stdout)["question"] == "smoothness"
    assert "question" not in json.loads(run("explain", "noisy-batchnorm", "--json").stdout)
    assert "of the atlas" not in run("explain", "noisy-batchnorm").stdout


def test_questions_that_name_one_of_a_comparison_also_name_the_command_that_asks_it():
    named = [question for question in normscope.studies.texts().questions if question.atlas]
    assert len({question.atlas for question in named}) == len(named) >= 8
    for question in named:
        assert explain.is_question(unit(question.atlas))
        (asked,) = re.findall(r"normscope compare .*--questions ([\w,]+)", question.command)
        assert question.atlas in asked.split(",")
        assert explain.question_of(question.picture) == question.atlas


@pytest.fixture
def evidence(monkeypatch):
    """Plant the evidence of the package."""

    def planted(found):
        def committed():
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(explain, "committed", committed)

    return planted


SLUG = "fewer-iterations"
COMMITTED = CondensedEvidence("", (), (), (), ())
STUDY = CondensedStudy(
    SLUG,
    1,
    "T",
    "speed",
    (),
    report_pages.verdicts()[0],
    (),
    "quick",
    "digits",
    "cpu",
    (0,),
    1.0,
    "1",
    "2",
    1,
    "c",
    "x",
)


@pytest.mark.parametrize("command", [("explain",), ("study", "show")])
def test_what_a_study_answers_comes_first(run, evidence, command):
    evidence(dataclasses.replace(COMMITTED, studies=(STUDY,)))
    text = run(*command, SLUG).stdout
    places = [text.index(words) for words in ("Answer\n------\n", "Depends on the depth.", "Yes: the range is 1.83")]
    places += [text.index(f"\n{head}\n") for head in ("Claim", "Method", "Threats")]
    assert places == sorted(places)
    document = json.loads(run(*command, SLUG, "--json").stdout)
    assert document["standing"] == "depends on the depth"
    assert document["effect"] == "1.83 times narrower (1.52 to 2.20)"
    assert "The evidence of this version has none" in run(*command, "noisy-batchnorm").stdout


@pytest.mark.parametrize("command", [("explain", SLUG), ("study", "show", SLUG), ("study", "list")])
def test_where_there_is_no_evidence_of_this_version_one_line_says_so(run, evidence, command):
    evidence(StoreError("evidence.json has layout 1"))
    done = run(*command)
    assert done.stdout.count("There is no evidence of this version yet") == 1
    assert done.stderr == ""
    assert SLUG in done.stdout
    json.loads(run(*command, "--json").stdout)


def test_the_list_has_the_word_and_the_effect_of_every_study_with_evidence(run, evidence):
    evidence(dataclasses.replace(COMMITTED, studies=(STUDY,)))
    flat = " ".join(run("study", "list").stdout.split())
    assert "Answer" in flat
    assert "depends" in flat
    rows = {row["slug"]: row for row in json.loads(run("study", "list", "--json").stdout)}
    assert rows[SLUG]["standing"] == "depends on the depth"
    assert "standing" not in rows["noisy-batchnorm"]


def test_the_evidence_of_the_package_is_read_or_refused_in_one_line():
    explain.committed.cache_clear()
    file = Path(normscope.studies.__file__).parent / "data" / "evidence.json"
    if json.loads(file.read_text(encoding="utf-8"))["version"] == 2:
        assert {study.slug for study in explain.committed().studies} <= {
            study.CODE for study in normscope.studies.all()
        }
    else:
        with pytest.raises(StoreError, match="--condense"):
            explain.committed()
