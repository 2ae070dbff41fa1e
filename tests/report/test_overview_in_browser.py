"""A page of many claims in a browser: filters, links that open studies, figures drawn when unfolded, no script."""

import pytest
from test_overview import ERRATA, SENTENCES, many

from kit.browser import IN_BROWSER, READY, overflow, until
from normscope import report

pytestmark = IN_BROWSER
ROWS = ".tile"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("many") / "report.html"
    return report.write(path, title="Many", sections=many(), sentences=SENTENCES, errata=ERRATA)


def shown(tab):
    return tab.locator(ROWS).evaluate_all("rows => rows.filter(r => r.offsetParent).map(r => r.dataset.answer)")


def test_the_filters_hide_and_show_together(opened, written):
    tab = opened(written)
    assert len(shown(tab)) == 7
    tab.get_by_label("Answer", exact=True).select_option("opposite")
    assert shown(tab) == ["opposite", "opposite"]
    assert tab.locator(".filters output").inner_text() == "2 of 7 claims"
    tab.get_by_label("Topic").select_option("topic 0")
    assert shown(tab) == ["opposite"]
    tab.get_by_label("Answer", exact=True).select_option("")
    tab.get_by_label("Topic").select_option("")
    tab.get_by_label("Source text").select_option("Text | B")
    assert shown(tab) == ["no effect that matters"] * 2
    tab.get_by_label("Source text").select_option("None of them: an extension")
    assert shown(tab) == ["holds"] * 3
    tab.get_by_label("Source text").select_option("")
    assert len(shown(tab)) == 7


def test_a_row_opens_its_study_by_keyboard_too_and_again_after_it_was_closed(opened, written):
    tab = opened(written)
    whole = tab.locator("#study-s1 > details")
    assert not whole.evaluate("fold => fold.open")
    assert tab.locator("#study-s1 svg.marks").count() == 0  # nothing is drawn where nothing is seen
    link = tab.locator(".tile").get_by_role("link", name="Claim of s1.")
    for _ in range(2):
        link.focus()
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#study-s1 > details[open]", state="attached")
        tab.locator("#study-s1 svg.marks").wait_for()
        top = "document.getElementById('study-s1').getBoundingClientRect().top"
        until(tab, lambda top=top: -5 < tab.evaluate(top) < 700)  # it scrolls smoothly
        assert -5 < tab.evaluate(top) < 700
        whole.locator("> summary").click()
        assert not whole.evaluate("fold => fold.open")
    assert not tab.locator("#study-s2 > details").evaluate("fold => fold.open")


def test_an_address_with_a_study_opens_it(opened, written, browser):
    tab = opened(written)
    tab.goto(written.as_uri() + "#study-s0")
    tab.reload()
    tab.wait_for_selector(READY, state="attached")
    assert tab.locator("#study-s0 > details").evaluate("fold => fold.open")
    tab.evaluate("location.hash = '%'")  # no address, and no reason to fail
    tab.evaluate("location.hash = 'nowhere'")


def test_the_figure_of_an_erratum_is_drawn_when_it_is_unfolded(opened, written):
    tab = opened(written)
    assert tab.locator("#errata svg.marks").count() == 0
    tab.locator("#errata summary").first.click()
    tab.locator(".erratum summary").first.click()
    tab.locator("#errata svg.marks").wait_for()
    assert overflow(tab) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 1000, 400])
def test_nothing_overflows_and_tiles_have_a_width(opened, written, width, scheme):
    tab = opened(written, width, scheme)
    tab.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    drawn = "[...document.querySelectorAll('.chart')].every(box => box.querySelector('svg.marks'))"
    until(tab, lambda: tab.evaluate(drawn))
    tab.wait_for_selector(READY, state="attached")
    assert overflow(tab) <= 0
    boxes = tab.locator(ROWS).evaluate_all("all => all.map(s => s.getBoundingClientRect().width)")
    assert len(boxes) == 7
    assert min(boxes) > 220
    scrolls = tab.locator("#answers .scroll, #theory .scroll, #sentences .scroll").evaluate_all(
        "all => all.map(s => s.scrollWidth - s.clientWidth)"
    )
    assert max(scrolls) <= 1
    inks = tab.locator(f"{ROWS} .badge").evaluate_all("all => [...new Set(all.map(s => getComputedStyle(s).color))]")
    assert len(inks) == 3


def test_without_a_script_every_claim_is_there_and_every_study_can_be_opened(browser, written):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(written.as_uri())
    assert tab.locator(ROWS).count() == 7
    assert all(tab.locator(ROWS).nth(i).is_visible() for i in range(7))
    assert not tab.locator(".filters").is_visible()
    tab.locator("#study-s1 > details > summary").click()
    assert tab.locator("#study-s1 .answer").is_visible()
    context.close()


def test_on_paper_every_study_is_unfolded(opened, written):
    tab = opened(written)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("details.whole:not([open])").count() == 0
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("details.whole[open]").count() == 0
