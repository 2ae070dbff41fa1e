"""The page of a scope in a browser: quiet, within the window, its charts within their boxes, folds that open."""

import pytest

from kit.browser import CHROMIUM, IN_BROWSER, READY, overflow, sync_playwright, until
from kit.planted_records import records, seen_of
from normscope import seen

pytestmark = IN_BROWSER

LAYERS = [f"transformer.h.{block}.{part}" for block in range(12) for part in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")]
WIDE = """() => [...document.querySelectorAll('.chart')].filter(box => {
  const svg = box.querySelector('svg.marks');
  return svg && Number(svg.getAttribute('width')) > box.clientWidth + 1;
}).map(box => box.dataset.chart)"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    every = {
        "update_ratio": {
            "update_ratio": {site: [1e-3, 2e-3, 3e-3, 4e-2] for site in LAYERS},
            "update_norm": {site: [1.0, 2.0, 3.0, 4.0] for site in LAYERS},
        },
        "gradient_flow": {
            "output_norm": {site: 1.3**-i for i, site in enumerate(LAYERS)},
            "norm": dict.fromkeys(LAYERS, 1.0),
            "growth": {"": [1.7, 1.7, 1.7, 1.7]},
        },
        "statistics_noise": {
            name: {site: [0.01, 0.02, 0.01, 0.02] for site in LAYERS[:5]}
            for name in ("mean_noise", "mean_noise_ratio", "scale_noise", "scale_noise_ratio")
        },
        "loss": {"loss": {"": [2.0, 1.0, 0.5, 0.2]}},
    }
    found = seen_of(
        *(records(probe, values) for probe, values in every.items()), modules=dict.fromkeys(LAYERS, "Linear")
    )
    return seen.write(tmp_path_factory.mktemp("page") / "page.html", found)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_is_quiet_and_within_the_window_folded_and_open(written, width, scheme):
    noise = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(120_000)
        tab = context.new_page()
        tab.on("console", lambda message: noise.append(message.text))
        tab.on("pageerror", lambda error: noise.append(str(error)))
        tab.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else noise.append(r.url))
        tab.goto(written.as_uri())
        tab.wait_for_selector(READY, state="attached")
        first = tab.locator("#stands-out .lines .said").first
        assert "transformer.h." in first.inner_text()
        box = first.bounding_box()
        assert box["y"] + box["height"] < 900  # on the first screen
        assert tab.locator(".chart svg.marks").count() == 4
        assert overflow(tab) <= 0
        assert tab.evaluate(WIDE) == []
        tab.locator(".panel a").last.click()  # leads to its fold, and opens it
        until(tab, lambda: tab.locator("details.whole[open]").count() == 1)
        assert tab.locator("details.whole[open]").count() == 1
        tab.evaluate("for (const fold of document.querySelectorAll('main details')) fold.open = true")
        until(tab, lambda: tab.evaluate("[...document.querySelectorAll('.chart')].every(b => b.querySelector('svg'))"))
        tab.wait_for_selector(READY, state="attached")
        assert overflow(tab) <= 0
        assert tab.evaluate(WIDE) == []
        browser.close()
    assert noise == []
