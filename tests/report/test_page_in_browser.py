"""The page in a browser: drawn, quiet, without a network, light and dark, wide and narrow."""

import re

import pytest
from test_page import hostile_section

from kit import report_pages
from kit.browser import IN_BROWSER, READY, overflow, until
from normscope import report

pytestmark = IN_BROWSER


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    sections = report_pages.sections(report_pages.frame(every=20))
    return report.write(
        path, title="A report", sections=sections, provenance=report_pages.PROVENANCE, times=report_pages.TIMES
    )


def brightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


def look(tab):
    script = """() => ({
      ground: getComputedStyle(document.body).backgroundColor,
      text: getComputedStyle(document.body).color,
      chart: getComputedStyle(document.querySelector('.study .chart svg .role-axis-label text')).fill,
      panel: getComputedStyle(document.querySelector('.study .chart svg .background, .study .chart svg rect')).fill,
    })"""
    return tab.evaluate(script)


def unfold(tab):
    tab.evaluate("for (const fold of document.querySelectorAll('main details')) fold.open = true")
    drawn = "[...document.querySelectorAll('.chart')].every(box => box.querySelector('svg.marks'))"
    until(tab, lambda: tab.evaluate(drawn))
    tab.wait_for_selector(READY, state="attached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_chart_is_drawn_within_its_box_and_the_page_within_the_window(opened, written, width, scheme):
    tab = opened(written, width, scheme)
    assert overflow(tab) <= 0
    unfold(tab)
    boxes = tab.evaluate(
        """() => [...document.querySelectorAll('.chart')].map(box => {
          const svg = box.querySelector('svg.marks');
          if (!svg) return [0, 0, 0];
          return [box.clientWidth, Number(svg.getAttribute('width')), svg.querySelectorAll('path').length];
        })"""
    )
    assert len(boxes) == 9
    for box, svg, marks in boxes:
        assert 0.9 * box < svg <= box
        assert marks > 5
    assert overflow(tab) <= 0
    seen = look(tab)
    light = scheme == "light"
    assert (brightness(seen["ground"]) > 200) is light
    assert (brightness(seen["chart"]) < 128) is light
    assert (brightness(seen["text"]) < 128) is light


def test_the_button_switches_the_colours_and_is_remembered(opened, written):
    tab = opened(written)
    before = look(tab)
    tab.get_by_role("button", name="Switch to dark colours").click()
    until(tab, lambda: brightness(look(tab)["chart"]) > 128)
    tab.wait_for_selector(READY, state="attached")
    after = look(tab)
    assert brightness(after["ground"]) < 60 < brightness(before["ground"])
    assert brightness(after["chart"]) > 128 > brightness(before["chart"])
    tab.reload()
    tab.wait_for_selector(READY, state="attached")
    assert look(tab) == after
    tab.get_by_role("button", name="Switch to light colours").click()
    until(tab, lambda: brightness(look(tab)["ground"]) > 200)
    assert brightness(look(tab)["ground"]) > 200


def test_a_change_of_the_system_or_of_the_width_draws_again(opened, written):
    tab = opened(written)
    tab.emulate_media(color_scheme="dark")
    tab.set_viewport_size({"width": 390, "height": 800})
    width = "Number(document.querySelector('.study .chart svg').getAttribute('width'))"
    until(tab, lambda: brightness(look(tab)["chart"]) > 128 and tab.evaluate(width) <= 390)
    tab.wait_for_selector(READY, state="attached")
    assert brightness(look(tab)["chart"]) > 128
    assert overflow(tab) <= 0
    assert tab.evaluate(width) <= 390


def test_a_chart_is_saved_as_png_and_svg(opened, written, tmp_path):
    tab = opened(written, accept_downloads=True)
    figure = tab.locator("figure.picture:visible").nth(0)
    for kind, start in (("PNG", b"\x89PNG"), ("SVG", b"<svg")):
        figure.locator("summary").click()
        assert figure.locator(".vega-actions a").all_inner_texts() == ["Save as SVG", "Save as PNG"]
        with tab.expect_download() as download:
            figure.get_by_text(f"Save as {kind}").click()
        target = tmp_path / download.value.suggested_filename
        download.value.save_as(target)
        assert target.name == f"normscope-band.{kind.lower()}"
        assert target.read_bytes().lstrip().startswith(start)
        figure.locator("summary").click()


def test_a_click_on_the_legend_brings_one_arm_forward(opened, written):
    tab = opened(written)
    chart = tab.locator(".chart:visible").nth(0)
    faint = "els => els.filter(e => Number(getComputedStyle(e).opacity) < .15).length"
    lines = "svg .mark-line path"
    assert chart.locator(lines).evaluate_all(faint) == 0
    chart.locator("svg .role-legend-label text").get_by_text("noisy batch norm", exact=True).click()
    until(tab, lambda: chart.locator(lines).evaluate_all(faint) > 0)
    assert chart.locator(lines).evaluate_all(faint) > 0


def test_pointing_at_a_curve_shows_its_numbers(opened, written):
    tab = opened(written)
    box = tab.locator("#study-noisy-batchnorm .chart:visible").nth(0)
    box.scroll_into_view_if_needed()
    place = box.locator("svg .mark-line path").first.bounding_box()
    tab.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    tab.mouse.move(place["x"] + place["width"] / 2 + 3, place["y"] + place["height"] / 2 + 2, steps=4)
    tip = tab.locator("#tip")
    tip.wait_for(state="visible")
    words = tip.inner_text()
    assert "optimizer step" in words
    assert any(label in words for label in report_pages.LABELS.values())
    assert "undefined" not in words


def test_hostile_strings_do_no_harm(opened, tmp_path):
    section = hostile_section()
    path = report.write(tmp_path / "r.html", title=section.title, sections=[section, section], lede=section.title,
                        provenance={section.slug: section.slug}, times={section.slug: 2.0})  # fmt: skip
    for width in (1280, 390):
        tab = opened(path, width)
        unfold(tab)
        assert overflow(tab) <= 0
        assert tab.locator("img").count() == 0
        assert tab.locator(".chart svg.marks").count() == 3


def test_the_keyboard_reaches_the_content_and_a_command_is_copied(opened, written):
    tab = opened(written, permissions=["clipboard-read", "clipboard-write"])
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.get_by_text("Run it again").first.click()
    tab.get_by_role("button", name="Copy").first.click()
    tab.get_by_role("button", name="Copied").wait_for()
    assert tab.evaluate("document.getElementById('said').textContent") == "The command was copied"


def test_on_paper_the_page_is_light_and_unfolded(opened, written):
    tab = opened(written, scheme="dark")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.emulate_media(media="print", color_scheme="dark")
    tab.wait_for_selector(READY, state="attached")
    assert tab.locator("details.fold:not([open])").count() == 0
    assert brightness(look(tab)["chart"]) < 128
    assert brightness(look(tab)["ground"]) > 200


def test_the_contents_of_a_phone_open_lead_and_close(opened, written):
    tab = opened(written, 390)
    menu = tab.locator("details.menu")
    links = menu.get_by_role("link")
    assert not links.first.is_visible()
    menu.locator("summary").click()
    assert links.count() == 6  # answers, four studies, how it was made
    box = menu.locator("nav").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert min(links.nth(i).bounding_box()["height"] for i in range(6)) >= 24, "large enough for a finger"
    assert overflow(tab) <= 0
    links.nth(3).click()
    until(tab, lambda: not menu.evaluate("fold => fold.open"))
    assert not menu.evaluate("fold => fold.open")
    assert tab.evaluate("location.hash").startswith("#study-")
    menu.locator("summary").click()
    tab.keyboard.press("Escape")
    assert not menu.evaluate("fold => fold.open")
    assert not opened(written, 1280).locator("details.menu").is_visible(), "a wide page has its contents beside it"


def test_a_table_that_is_wider_than_the_page_scrolls_and_says_so(opened, written):
    for width, scrolls in ((390, True), (1280, False)):
        tab = opened(written, width)
        unfold(tab)
        words = tab.get_by_text("This table is wider than the page").first
        until(tab, lambda words=words, scrolls=scrolls: words.is_visible() is scrolls)
        assert words.is_visible() is scrolls
        region = tab.locator(".more + .scroll").first
        assert region.evaluate("r => r.scrollWidth > r.clientWidth + 1") is scrolls
        assert region.evaluate("r => r.tabIndex") == (0 if scrolls else -1)


def test_the_first_thing_on_a_phone_is_an_answer(opened, written):
    tab = opened(written, 390)
    first = tab.locator(".tile").first
    assert first.bounding_box()["y"] < 400
    assert "depends on the depth" in first.inner_text()


def test_a_page_of_four_studies_shows_little_until_it_is_unfolded(opened, written):
    """At most a third of what the page of these four studies once showed: 6,763 words and 23,808 pixels."""
    tab = opened(written)
    words = "document.body.innerText.split(/\\s+/).filter(Boolean).length"
    closed = tab.evaluate(words)
    assert 200 < closed < 6763 / 3
    assert tab.evaluate("document.documentElement.scrollHeight") < 23_808 / 3
    unfold(tab)
    assert tab.evaluate(words) > 1.2 * closed, "what is folded is there"
