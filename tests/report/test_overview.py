"""A page of many claims: tiles, filters, one chart, what texts say, errata, theory; hostile words inert."""

import dataclasses
import json
import re

import pytest
from test_page import HOSTILE, Outline

from kit import report_pages
from kit.charts import rows_of
from normscope import plots, report
from normscope.records import Answer, Condition, Erratum, Estimate, Outcome, Sentence, Verdict
from normscope.report import Section


def verdict(point, low, high, margin, *, scale="difference", outcome=Outcome.UNCLEAR, slug="s", **changed):
    effect = Estimate(point, low, high, 0.95, 10, "t", scale)
    told = {"amount": f"{point:+g}", "finding": f"it is {point:+g}"}
    return Verdict(slug, f"Claim of {slug}.", outcome, "e", effect, margin, "r", **(told | changed))


def many(count=7, **changed):
    figure = plots.curves(
        report_pages.frame(seeds=2, every=60, arms=["none", "bn"]), y="loss", slug="loss", title="Loss"
    )
    table = plots.Table(
        "Against theory", ("Quantity", "Measured", "Theory", "Ratio"), (("growth", "1.5", "1.4", "1.07"),)
    )
    return [
        Section(
            f"s{i}", f"Title {i}.", f"Claim {i}.", {"Threats": "Few."},
            (verdict(i - 3.0, i - 4.0, i - 2.0, 0.5, slug=f"s{i}", outcome=list(Outcome)[i % 3]),),
            figures=(figure,) if i < 2 else (), tables=(table,) if i == 1 else (),
            **({"topic": f"topic {i % 2}", "texts": ("Text A", "Text | B")[: i % 3]} | changed),
        )
        for i in range(count)
    ]  # fmt: skip


EXTENSION = "None of them: an extension"
SENTENCES = (
    Sentence("Text A", "answer", "It helps.", (Answer("s1", negated=True), Answer("s0", "nothing"), Answer("gone"))),
    Sentence("Text | B", "comment", "It is old.", (), "Nothing to measure."),
)
ERRATA = (
    Erratum("Text A", "Stated.", "Holds.", ("s1", "s2"), "loss"),
    Erratum("A paper", "Stated too.", "Holds too.", ()),
)


def written(tmp_path, sections, **given):
    return report.write(tmp_path / "r.html", title="T", sections=sections, **given).read_text(encoding="utf-8")


def outline(page):
    found = Outline()
    found.feed(page)
    return found


def test_many_claims_get_tiles_and_filters_and_folded_studies(tmp_path):
    page = written(tmp_path, many(), sentences=SENTENCES, errata=ERRATA)
    found = outline(page)
    rows = [a for tag, a in found.tags if tag == "li" and "data-answer" in a]
    assert [row["data-answer"] for row in rows] == [list(Outcome)[i % 3].value for i in range(7)]
    options = {}
    for tag, attributes in found.tags:
        if tag == "select":
            key = attributes["data-key"]
        elif tag == "option" and attributes["value"]:
            options.setdefault(key, set()).add(attributes["value"])
    assert options == {
        "answer": {"holds", "opposite", "no effect that matters"},
        "topic": {"topic 0", "topic 1"},
        "texts": {"Text A", "Text | B", EXTENSION},
    }
    for key, values in options.items():  # every choice leaves a tile, and every tile can be chosen
        held = [set(row[f"data-{key}"].split("\n")) for row in rows]
        assert set().union(*held) == values
    (form,) = [a for tag, a in found.tags if tag == "form"]
    assert "hidden" in form  # the script shows it: without one it would do nothing
    folds = [a for tag, a in found.tags if tag == "details" and a.get("class") == "whole"]
    assert len(folds) == 7
    assert not [fold for fold in folds if "open" in fold]
    for i in range(7):
        assert f'<a href="#study-s{i}">Claim of s{i}.</a>' in page
        assert f'<section id="study-s{i}" class="study folded"' in page
        # The badge stands beside the claim that it judges: the title may say what was found instead.
        assert f'<summary><h2 id="study-s{i}-head">Claim of s{i}.</h2>' in page
    assert "7 claims: 3 hold, 2 are the opposite, 2 have no effect that matters." in page


def chart_rows(page):
    """Return the rows of the chart of all effects."""
    (data,) = re.findall(r'id="page-data">(.*?)</script>', page)
    return [row for row in rows_of(json.loads(data)["charts"]["overview"]["spec"]) if "label" in row]


def test_the_chart_of_all_effects_names_claims_in_the_order_of_the_tiles_without_identities(tmp_path):
    sections = many()
    exact = verdict(0.1, 0.1, 0.1, 1.0, scale="error", outcome=Outcome.EXACT, slug="s2")
    sections[2] = dataclasses.replace(sections[2], verdicts=(exact,))
    ratio = verdict(0.7, 0.5, 0.9, 0.4, scale="log-ratio", outcome=Outcome.HOLDS, slug="s4")
    sections[4] = dataclasses.replace(sections[4], verdicts=(ratio,))
    page = written(tmp_path, sections)
    order = [f"Claim of s{i}." for i in (0, 1, 3, 4, 5, 6)]
    tiles = re.findall(r'<p class="claim"><a href="#[^"]*">(.*?)</a>', page)
    heads = re.findall(r'<h2 id="study-s\d-head">(.*?)</h2>', page)
    assert tiles == heads == [*order, "Claim of s2."]
    assert [row["label"] for row in chart_rows(page)] == order
    assert "6 claims: 4 hold, 1 is the opposite, 1 has no effect that matters; 1 identity apart: 1 is exact." in page
    assert "1 identity is not drawn." not in page, "it was not asked for"


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ([], "0 claims."),
        ([Outcome.HOLDS], "1 claim: 1 holds."),
        ([Outcome.EXACT, Outcome.FALSE, Outcome.FALSE], "3 identities: 1 is exact, 2 are false."),
        ([Outcome.HOLDS] * 2 + [Outcome.UNCLEAR, Outcome.EXACT],
         "3 claims: 2 hold, 1 is unclear; 1 identity apart: 1 is exact."),
        (list(Outcome), "5 claims: 1 holds, 1 is the opposite, 1 has no effect that matters, 1 is unclear, 1 is not "
         "measurable; 2 identities apart: 1 is exact, 1 is false."),
    ],
)  # fmt: skip
def test_claims_are_counted_by_answer_and_identities_apart(outcomes, said):
    assert report.tally([verdict(1, 0, 2, 0.5, outcome=outcome) for outcome in outcomes]) == said


def test_a_claim_that_depends_on_a_condition_is_counted_as_such():
    def at(depth, outcome, lr=1, **changed):
        conditions = (Condition("depth", f"{depth} layers"), Condition("learning rate", str(lr)))
        return verdict(1, 0, 2, 0.5, outcome=outcome, conditions=conditions, **changed)

    depends = at(3, Outcome.HOLDS, parts=(at(20, Outcome.OPPOSITE),))
    mixed = at(3, Outcome.HOLDS, parts=(at(20, Outcome.OPPOSITE, lr=2),))
    undecided = at(3, Outcome.HOLDS, parts=(at(20, Outcome.UNCLEAR),))
    assert report.tally([depends, mixed, undecided]) == ("3 claims: 1 holds, 1 depends on a condition, 1 is mixed.")
    assert [report.sign_of(each) for each in (depends, mixed, undecided)] == ["◐", "◐", "✓"]


def test_few_claims_are_not_folded(tmp_path):
    page = written(tmp_path, many(3))
    for words in ('<form class="filters"', '<details class="whole"', 'id="theory"'):
        assert words not in page
    assert 'data-chart="overview"' in page
    assert page.count('<p class="sentence">') == 3


def test_sentences_errata_and_theory_lead_to_their_studies(tmp_path):
    page = written(tmp_path, many(), sentences=SENTENCES, errata=ERRATA)
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page[page.index('id="sentences"') :]))
    assert "Text A 1 sentence It says Answer It helps. answer s1 ✓ holds -2 s0, nothing gone not on this page" in text
    assert "It is old. comment Nothing to measure." in text
    assert "2 statements Text A Stated Stated. Holds Holds. s1" in text
    errata = page[page.index('id="errata"') : page.index('id="made"')]
    assert errata.count('data-chart="study-s1-1"') == 1
    assert "Figure: Loss" in errata
    two = [*many()]
    two[0] = dataclasses.replace(
        two[0], figures=(dataclasses.replace(two[0].figures[0], slug="other"), *two[0].figures)
    )
    page = written(tmp_path, two, errata=(Erratum("Text A", "Stated.", "Holds.", ("s0",), "loss"),))
    errata = page[page.index('id="errata"') : page.index('id="made"')]
    assert 'data-chart="study-s0-2"' in errata, "the figure that the erratum names, not the first of its study"
    page = written(tmp_path, many(), sentences=SENTENCES, errata=ERRATA)
    theory = page[page.index('id="theory"') : page.index('id="sentences"')]
    assert '<a href="#study-s1">s1</a>' in theory
    assert "1.07" in theory
    links = {link[1:] for link in outline(page).links if link.startswith("#")}
    assert {"sentences", "errata", "theory"} <= links <= set(outline(page).ids)


def test_headings_still_go_down_one_step_at_a_time(tmp_path):
    found = outline(written(tmp_path, many(), sentences=SENTENCES, errata=ERRATA))
    assert all(later - earlier <= 1 for earlier, later in zip(found.headings, found.headings[1:], strict=False))
    assert len(found.ids) == len(set(found.ids))


def test_foreign_names_stay_text(tmp_path):
    bad = verdict(1.0, 0.5, 1.5, 0.5, slug=HOSTILE)
    sections = [
        dataclasses.replace(one, slug=HOSTILE + str(i), verdicts=(bad,), title=HOSTILE)
        for i, one in enumerate(many(topic=HOSTILE, texts=(HOSTILE,)))
    ]
    sections[0] = dataclasses.replace(sections[0], topic="t", texts=())
    answers = (Answer(HOSTILE), Answer(HOSTILE + "0"), Answer(HOSTILE + "1", HOSTILE))
    sentence = Sentence(HOSTILE, HOSTILE, HOSTILE, answers, HOSTILE)
    erratum = Erratum(HOSTILE, HOSTILE, HOSTILE, (HOSTILE, HOSTILE + "0"), HOSTILE)
    page = written(tmp_path, sections, sentences=[sentence], errata=[erratum])
    found = outline(page)
    assert [kind for kind, _ in found.scripts] == ["", "application/json", "", ""]
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    chosen = [a["value"] for tag, a in found.tags if tag == "option"]
    assert HOSTILE in chosen
