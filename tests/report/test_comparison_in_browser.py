"""The page of a comparison in a browser: drawn, quiet, within the window, light and dark, wide and narrow."""

import pytest

from kit import compared_pages
from kit.browser import IN_BROWSER, READY, overflow, until
from normscope import report

pytestmark = IN_BROWSER
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{7*7}}" + "x" * 200


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return report.write_comparison(tmp_path_factory.mktemp("compared") / "page.html", compared_pages.page())


def unfold(tab):
    tab.evaluate("for (const fold of document.querySelectorAll('main details')) fold.open = true")
    drawn = "[...document.querySelectorAll('.chart')].every(box => box.querySelector('svg.marks'))"
    until(tab, lambda: tab.evaluate(drawn))
    tab.wait_for_selector(READY, state="attached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_and_every_chart_is_drawn(opened, written, width, scheme):
    tab = opened(written, width, scheme)
    assert overflow(tab) <= 0
    unfold(tab)
    assert overflow(tab) <= 0
    assert tab.locator(".chart svg.marks").count() == 12
    outside = tab.evaluate(
        """width => [...document.querySelectorAll('main *')].filter(each => {
          const box = each.getBoundingClientRect();
          const inside = each.closest('.scroll, pre, .chart, .unseen, thead');
          return box.width && !inside && (box.right > width + 1 || box.left < -1);
        }).length""",
        width,
    )
    assert outside == 0


@pytest.mark.parametrize(("width", "columns"), [(1280, 4), (800, 3), (390, 1)])
def test_the_strip_has_as_many_columns_as_there_is_room(opened, written, width, columns):
    tab = opened(written, width)
    boxes = tab.locator(".strip .tile").evaluate_all("all => all.map(tile => tile.getBoundingClientRect().toJSON())")
    assert len(boxes) == 4
    assert len({round(box["x"]) for box in boxes}) == columns
    assert min(box["width"] for box in boxes) > 200


def test_every_word_has_a_colour_that_can_be_read_in_both_themes(opened, written):
    contrast = """badge => {
      const rgb = colour => {
        const canvas = document.createElement('canvas').getContext('2d');
        canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
      };
      const light = colour => rgb(colour).map(v => v / 255)
        .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const style = getComputedStyle(badge);
      const [a, b] = [light(style.color), light(style.backgroundColor)].sort((x, y) => y - x);
      return (a + .05) / (b + .05);
    }"""
    for scheme in ("light", "dark"):
        tab = opened(written, 1280, scheme)
        badges = tab.locator(".asked .badge")
        inks = badges.evaluate_all("all => [...new Set(all.map(each => getComputedStyle(each).color))]")
        assert len(inks) == 6
        assert min(badges.nth(i).evaluate(contrast) for i in range(6)) >= 4.5


def test_a_question_leads_to_its_section_by_keyboard(opened, written):
    tab = opened(written, reduced_motion="reduce")  # else the way to the link and that to the section are two scrolls
    link = tab.locator(".asked").get_by_role("link", name=compared_pages.ASKS["speed"])
    link.focus()
    tab.keyboard.press("Enter")
    top = "document.getElementById('question-4').getBoundingClientRect().top"
    until(tab, lambda: -5 < tab.evaluate(top) < 200)
    assert -5 < tab.evaluate(top) < 200
    heading = tab.get_by_role("region", name=compared_pages.ASKS["speed"])  # a section with a name is a region
    assert heading.get_by_role("heading", name=compared_pages.ASKS["speed"]).is_visible()


def test_tables_lists_and_signs_speak_to_who_does_not_see_them(opened, written):
    for width in (1280, 390):
        tab = opened(written, width)
        table = tab.get_by_role("table", name="What each arm is")
        assert table.get_by_role("row").count() == 4
        assert table.get_by_role("columnheader").all_inner_texts() == ["Your network", "Arm", "What was done"]
        assert tab.get_by_role("table", name="The numbers of each arm").get_by_role("row").count() == 7
        assert tab.get_by_role("list", name="In short").get_by_role("listitem").count() == 4
        assert tab.get_by_role("list", name="What a reader must know").get_by_role("listitem").count() == 2
        assert tab.locator("main .sign:not([aria-hidden=true])").count() == 0


def test_the_command_is_copied(opened, written):
    tab = opened(written, permissions=["clipboard-read", "clipboard-write"])
    tab.get_by_role("button", name="Copy").click()
    tab.get_by_role("button", name="Copied").wait_for()
    assert tab.evaluate("navigator.clipboard.readText()").startswith("normscope compare train.py:make_case")


def test_described_numbers_fit_too(opened, tmp_path):
    path = report.write_comparison(tmp_path / "page.html", compared_pages.page(described=True))
    tab = opened(path, 390, "dark")
    unfold(tab)
    assert overflow(tab) <= 0
    assert {" ".join(words.split()) for words in tab.locator("main .badge").all_inner_texts()} == {"· described"}


def test_hostile_strings_do_no_harm(opened, tmp_path):
    path = report.write_comparison(tmp_path / "page.html", compared_pages.page(hostile=HOSTILE, title=HOSTILE))
    for width in (1280, 390):
        tab = opened(path, width)
        unfold(tab)
        assert overflow(tab) <= 0
        assert tab.locator("img").count() == 0
