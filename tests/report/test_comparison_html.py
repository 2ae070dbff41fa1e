"""The page of a comparison as text: tiles, sentences, sections and the words that are not there with too few seeds."""

import dataclasses
import json
import re

import pytest
from test_page import HOSTILE, outline, words_of

from kit import compared_pages
from normscope import report
from normscope.records import Outcome
from normscope.report import MadeArm


@pytest.fixture(scope="module")
def page():
    return report.comparison_html(compared_pages.page())


@pytest.fixture(scope="module")
def described():
    return report.comparison_html(compared_pages.page(described=True))


def part(page, begin, end):
    return page[page.index(begin) :].partition(end)[0]


def strip(page):
    return [words_of(tile) for tile in re.findall(r'<li class="tile .*?</li>', page, re.S)]


def listed(page):
    found = part(page, '<ol class="asked">', "</ol>")
    return [words_of(item) for item in re.findall(r"<li .*?</li>", found, re.S)]


def sections(page):
    return re.findall(r'<section id="(question-\d+)".*?</section>', page, re.S)


def test_the_strip_has_word_effect_and_the_numbers_of_the_two_arms_that_decide(page):
    numbers = "with its norms 1.27 without norms 1.53"
    assert strip(page) == [
        f"Gradient growth ◐ depends on the time 1.83 times larger interval 1.52 to 2.20 {numbers}",
        f"Smoothness ⇄ opposite 2.5 times wider interval 2.0 to 3.3 {numbers}",
        f"Shift – not measurable {numbers}",  # a number that says nothing is not shown
        f"Speed ✓ holds 17.2 % lower interval 15 to 19 {numbers}",
    ]


def test_a_word_of_the_strip_says_that_it_is_corrected_for_all_answers():
    asked = []
    for each, p in zip(compared_pages.asked(), (0.0004, 0.04, None, 0.06, 0.3, 0.02), strict=True):
        (verdict,) = each.section.verdicts
        outcome = Outcome.UNCLEAR if p and p > 0.05 else verdict.outcome
        verdict = dataclasses.replace(verdict, adjusted_p=p, outcome=outcome)
        asked.append(dataclasses.replace(each, section=dataclasses.replace(each.section, verdicts=(verdict,))))
    tiles = part(report.comparison_html(compared_pages.page(asked=tuple(asked))), 'class="tiles strip"', "</ul>")
    badges = re.findall(r'<span class="badge [^"]*"(.*?)>.*?</span> (.*?)</span>', tiles, re.S)
    said = (
        ' title="After Holm&#39;s correction for 5 answers read together: p {}. The interval is of this answer alone."'
    )
    assert badges == [
        (said.format("&lt; 0.001"), "depends on the time"),
        (said.format("= 0.04"), "opposite"),
        ("", "not measurable"),
        (said.format("= 0.06"), "unclear"),
    ]


def test_every_question_is_answered_in_a_sentence_that_leads_to_its_section(page):
    asked = compared_pages.asked()
    assert len(listed(page)) == len(asked) == 6
    for shown, each, section in zip(listed(page), asked, sections(page), strict=True):
        assert shown.startswith(f"{each.number}. {each.section.title}")
        assert shown.endswith(each.sentence)
        assert f'<a href="#{section}">{each.section.title}</a>' in page
    words = ("depends on the time", "opposite", "not measurable", "holds", "unclear", "no effect that matters")
    assert all(f" {word} " in shown for word, shown in zip(words, listed(page), strict=True))


def test_tiles_notes_sentences_arms_sections_and_numbers_come_in_this_order(page):
    begins = ['class="tiles strip"', 'class="notes must"', 'class="asked"', 'id="arms-head"', 'id="question-1"']
    begins += ['id="question-6"', 'id="arms-numbers"', 'id="said-in-runs"', 'id="again"', 'id="made"']
    places = [page.index(begin) for begin in begins]
    assert places == sorted(places)


def test_notes_are_sentences_and_are_not_folded(page):
    notes = part(page, 'class="notes must"', "</ul>")
    assert "<details" not in notes
    assert "The budget left out the probe <code>curvature</code>." in notes
    assert "Without its norms this network does not learn" in notes


def test_a_long_report_of_an_arm_is_folded_and_a_short_one_is_not(page):
    arms = part(page, 'id="arms-head"', "</section>")
    folded = re.findall("<details.*?</details>", arms, re.S)
    assert len(folded) == 1
    assert "14 lines in detail" in folded[0]
    assert folded[0].count("BatchNorm2d") == 14
    assert "note 12 parameters" not in folded[0]
    assert "note 12 parameters" in arms


def test_a_section_shows_its_answer_and_one_picture_and_folds_the_rest(page):
    for anchor in sections(page):
        section = part(page, f'<section id="{anchor}"', "</section>")
        visible = re.sub("<details.*?</details>", "", section, flags=re.S)
        assert visible.count('class="chart"') == 1
        assert "<table" not in visible
        for words in ("Numbers", "More pictures", "Question, Method, Threats", "Few steps.", "Loss by step"):
            assert words in section.replace(visible, "")
    assert "Also tried" in part(page, '<section id="question-1"', "</section>")
    assert "Other claims" in part(page, '<section id="question-1"', "</section>")


def test_the_numbers_of_every_arm_stand_in_a_row_a_question(page):
    rows = re.findall('<tr role="row">.*?</tr>', part(page, 'id="arms-numbers"', "</section>"), re.S)
    assert len(rows) == 1 + 6
    heads = re.findall("<th.*?</th>", rows[0], re.S)
    assert [words_of(head) for head in heads[1:]] == list(compared_pages.ARMS.values())
    assert [words_of(cell) for cell in re.findall("<td.*?</td>", rows[1], re.S)][1:] == ["1.27", "1.53", "–"]


def test_headings_go_down_one_step_at_a_time_and_addresses_exist_once(page, described):
    for each in (page, described):
        found = outline(each)
        assert found.headings[0] == 1
        assert found.headings.count(1) == 1
        assert all(later - earlier <= 1 for earlier, later in zip(found.headings, found.headings[1:], strict=False))
        assert len(found.ids) == len(set(found.ids))
        assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)


def test_with_too_few_seeds_no_word_is_anywhere_and_the_effects_are(described):
    found = outline(described)
    badges = re.findall(r'<span class="badge.*?</span> (.*?)</span>', described, re.S)
    assert set(badges) == {"described"}
    seen = re.sub("<(script|style).*?</(script|style)>", "", described, flags=re.S)
    for word in Outcome:
        assert f" {word.value} </span>" not in seen
        assert f'class="badge {word.value.replace(" ", "-")}' not in seen
    for told in ("no bound", "at least 3 are needed", "premise,", "Premise,", "Also tried: ", "What the words mean"):
        assert told not in seen
    assert strip(described)[0] == (
        "Gradient growth · described 1.83 times larger with its norms 1.27 without norms 1.53"
    )
    assert listed(described)[3].endswith("Described, not judged (1 seed): " + verdict_of("speed").finding + ".")
    assert "2.0 times smaller" in part(described, '<section id="question-1"', "</section>")
    assert found.headings[0] == 1


def verdict_of(code):
    return compared_pages.verdicts()[code]


def test_a_word_that_slipped_onto_a_described_page_would_be_seen(page):
    badges = re.findall(r'<span class="badge.*?</span> (.*?)</span>', page, re.S)
    assert set(badges) > {"holds", "opposite"}


def test_options_in_answers_are_set_as_code():
    asked = compared_pages.asked()[0]
    told = dataclasses.replace(asked, sentence="Not measurable: give several by `--rates`.")
    page = report.comparison_html(compared_pages.page(asked=(told,)))
    assert page.count("give several by <code>--rates</code>.") == 2  # in the list, and in the section


def test_the_page_says_when_it_was_run_and_how_long_that_took():
    page = report.comparison_html(compared_pages.page(provenance={"utc": "2026-01-02T03:04:05+00:00"}))
    made = words_of(part(page, '<section id="made"', "</section>"))
    assert "all runs, one after the other 8 min 32 s" in made
    assert "began 2026-01-02 03:04 UTC" in made


def test_hostile_strings_stay_text():
    told = compared_pages.page(hostile=HOSTILE, title=HOSTILE, lede=HOSTILE, command=HOSTILE,
                               provenance={HOSTILE: HOSTILE})  # fmt: skip
    found = outline(report.comparison_html(told))
    assert [kind for kind, _ in found.scripts] == ["", "application/json", "", ""]
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    json.loads(found.scripts[1][1])
    assert len(found.ids) == len(set(found.ids))


def test_a_page_with_nothing_to_say_is_a_page():
    arms = (MadeArm("a", "of a"), MadeArm("b", "of b"))
    bare = compared_pages.page(asked=(), arms=arms, pair=("a", "b"), notes=(), said=(), command="", provenance={})
    page = report.comparison_html(bare)
    assert "No question was asked." in page
    for left_out in ('class="tiles', "must", 'id="said-in-runs"', 'id="again"', 'id="arms-numbers"'):
        assert left_out not in page[page.index("<body>") :].partition('<script type="application/json"')[0]


@pytest.mark.parametrize(
    ("amount", "split"),
    [
        ("6.1 times narrower (5.2 to 7.1)", ("6.1 times narrower", "5.2 to 7.1")),
        ("+1.2 points (-0.5 to 1.9)", ("+1.2 points", "-0.5 to 1.9")),
        ("2 times (of all) (1 to 3)", ("2 times (of all)", "1 to 3")),
        ("not measured", ("not measured", "")),
        ("", ("", "")),
    ],
)
def test_an_effect_is_split_into_point_and_interval(amount, split):
    assert report.point_and_interval(amount) == split


def test_a_page_is_written_whole(tmp_path):
    path = report.write_comparison(tmp_path / "deep" / "page.html", compared_pages.page())
    assert path.read_text(encoding="utf-8") == report.comparison_html(compared_pages.page())
