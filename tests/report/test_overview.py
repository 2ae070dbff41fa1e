"""A page of many claims: bars in units of the margin, filters, what texts say, errata, theory; hostile words inert."""

import dataclasses
import itertools
import math
import re

import pytest
from test_page import HOSTILE, Outline

from kit import report_pages
from normscope import plots, report
from normscope.records import Erratum, Estimate, Outcome, Sentence, Verdict
from normscope.report import Section, _overview  # white box: a strip's numbers, which a page shows as pixels


def verdict(point, low, high, margin, *, scale="difference", outcome=Outcome.INCONCLUSIVE, slug="s"):
    return Verdict(
        slug, f"Claim of {slug}.", outcome, "e", Estimate(point, low, high, 0.95, 10, "t", scale), margin, "r"
    )


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


SENTENCES = (
    Sentence("Text A", "answer", "It helps.", ("s1", "gone")),
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


def test_effects_of_any_scale_lie_where_their_margins_put_them():
    far = 24.0
    ratio = _overview.strip(verdict(math.log(4), math.log(2), math.log(8), math.log(2), scale="log-ratio"), far)
    difference = _overview.strip(verdict(0.01, 0.005, 0.015, 0.005), far)
    assert (ratio["point"], ratio["start"], ratio["margin"]) == (
        difference["point"],
        difference["start"],
        difference["margin"],
    )
    assert ratio["start"] == ratio["margin"] > _overview.position(0, far) == _overview.WIDTH / 2
    loss = _overview.strip(verdict(-0.2, -0.21, -0.19, -0.01), far)
    assert loss["point"] < loss["margin"] < _overview.WIDTH / 2
    exact = _overview.strip(verdict(3.0, 2.0, 4.0, 0.0, scale="value"), far)
    assert exact["margin"] == _overview.WIDTH / 2 < exact["start"] < exact["point"] < exact["end"]
    assert exact["end"] == _overview.position(1, far)


def test_what_goes_on_is_cut_with_an_arrow_and_what_was_not_measured_is_not_drawn():
    open_ended = _overview.strip(verdict(1.0, -math.inf, 1e6, 0.5), 3.0)
    assert open_ended["cut_low"]
    assert open_ended["cut_high"]
    assert 0 <= open_ended["start"] < open_ended["point"] < open_ended["end"] <= _overview.WIDTH
    whole = _overview.strip(verdict(1.0, 0.5, 1.4, 0.5), 3.0)
    assert not whole["cut_low"]
    assert not whole["cut_high"]
    lost = _overview.strip(verdict(math.nan, math.nan, math.nan, 0.5), 3.0)
    assert not lost["seen"]
    assert all(math.isfinite(lost[key]) for key in ("point", "start", "end", "margin"))
    assert _overview.unit(verdict(math.nan, math.nan, math.nan, 0.0)) == 1.0


@pytest.mark.parametrize("far", [3.0, 9.0, 24.0, 100.0])
def test_ticks_are_symmetric_within_the_strip_and_do_not_touch(far):
    places = [place for place, _ in _overview.ticks(far)]
    assert places == sorted(places)
    assert places[0] >= 0
    assert places[0] + places[-1] == pytest.approx(_overview.WIDTH)
    assert min(b - a for a, b in itertools.pairwise(places)) > 20
    assert {"0", "1", "−1"} <= {words for _, words in _overview.ticks(far)}


def test_all_points_are_within_reach():
    judged = [verdict(-0.2, -0.3, -0.1, -0.01), verdict(1.0, 0.0, 2.0, 0.5), verdict(math.nan, 0, 0, 1.0)]
    assert _overview.reach(judged) == pytest.approx(24)
    assert _overview.reach([]) == 3.0
    assert _overview.reach([verdict(1e9, 0, 1, 1.0)]) == 100.0


def test_many_claims_get_bars_and_filters_and_folded_studies(tmp_path):
    page = written(tmp_path, many(), sentences=SENTENCES, errata=ERRATA)
    found = outline(page)
    rows = [a for tag, a in found.tags if tag == "tr" and "data-outcome" in a]
    assert len(rows) == 7
    assert len(re.findall(r'<svg class="strip (?:supported|refuted|inconclusive)"', page)) == 7
    options = {}
    for tag, attributes in found.tags:
        if tag == "select":
            key = attributes["data-key"]
        elif tag == "option" and attributes["value"]:
            options.setdefault(key, set()).add(attributes["value"])
    assert options == {
        "outcome": {"supported", "refuted", "inconclusive"},
        "topic": {"topic 0", "topic 1"},
        "texts": {"Text A", "Text | B", _overview.EXTENSION},
    }
    for key, values in options.items():  # every choice leaves a row, and every row can be chosen
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
        # The badge stands beside what it judges: the title may say what was found instead.
        assert f'<summary><h2 id="study-s{i}-head">Claim {i}.</h2>' in page


def test_few_claims_are_shown_as_ever(tmp_path):
    page = written(tmp_path, many(3))
    for words in ('<svg class="strip', '<form class="filters"', '<details class="whole"', 'id="theory"'):
        assert words not in page
    assert 'data-chart="overview"' in page


def test_sentences_errata_and_theory_lead_to_their_studies(tmp_path):
    page = written(tmp_path, many(), sentences=SENTENCES, errata=ERRATA)
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page[page.index('id="sentences"') :]))
    assert "Text A It says Studies It helps. answer s1 ✕ refuted −2.0 (−3.0 to −1.0) gone not on this page" in text
    assert "It is old. comment Nothing to measure." in text
    assert "Text A Stated Stated. Holds Holds. s1" in text
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
    sentence = Sentence(HOSTILE, HOSTILE, HOSTILE, (HOSTILE, HOSTILE + "0"), HOSTILE)
    erratum = Erratum(HOSTILE, HOSTILE, HOSTILE, (HOSTILE, HOSTILE + "0"), HOSTILE)
    page = written(tmp_path, sections, sentences=[sentence], errata=[erratum])
    found = outline(page)
    assert [kind for kind, _ in found.scripts] == ["", "application/json", "", ""]
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    chosen = [a["value"] for tag, a in found.tags if tag == "option"]
    assert HOSTILE in chosen
