"""The live page in a browser, with a training beside it: it fills within seconds, grows, and stays quiet."""

import json
import re
import subprocess
import sys
import threading
import time

import pytest

from kit import watched_training
from kit.browser import IN_BROWSER, overflow, until
from kit.live_run import HOSTILE, begin, rows_of
from normscope.live import LiveServer
from normscope.records import Record

pytestmark = IN_BROWSER


@pytest.fixture
def watching(tmp_path):
    """Serve a run's folder, which is not there yet."""
    servers = []

    def serve(**options):
        server = LiveServer(tmp_path / "run", port=0, **options)
        thread = threading.Thread(target=server.serve)
        thread.start()
        servers.append((server, thread))
        return server

    yield serve
    for server, thread in servers:
        server.close()
        thread.join()


@pytest.fixture
def opened(browser):
    """Open the page and, at the end, hold it to having been quiet and alone."""
    contexts, noise = [], []

    def go(server, width=1280, scheme="light", url=None):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(120_000)  # of a machine with other work
        contexts.append(context)
        tab = context.new_page()
        own = f"http://127.0.0.1:{server.port}/"
        tab.on("console", lambda message: noise.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: noise.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (noise.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("request", lambda r: None if r.url.startswith((own, "data:")) else noise.append(r.url))
        tab.goto(url or server.url)
        return tab

    yield go
    for context in contexts:
        context.close()
    assert noise == []


def rows(tab):
    return int(tab.evaluate("document.documentElement.dataset.rows || '0'"))


def state(tab):
    return tab.text_content("#state")


def ink(tab, index=0):
    """Return how many points of a chart are drawn on."""
    return tab.evaluate(
        """index => {
          const canvas = document.querySelectorAll('.panel canvas')[index];
          const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          let drawn = 0;
          for (let k = 3; k < data.length; k += 4) drawn += data[k] > 0;
          return drawn;
        }""",
        index,
    )


def test_a_page_that_waits_fills_within_seconds_of_the_first_due_step_and_grows(watching, opened, tmp_path):
    server = watching()
    tabs = [opened(server), opened(server, width=390, scheme="dark")]
    for tab in tabs:
        until(tab, lambda tab=tab: state(tab) == "Waiting")
        assert "does not exist yet" in tab.text_content("#said")
    words = [sys.executable, watched_training.__file__, str(tmp_path / "run"), "100000", "0.05"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as training:
        first_step = float(training.stdout.readline())
        for tab in tabs:
            tab.wait_for_selector("html[data-rows]", state="attached")
            assert rows(tab) >= 4
        assert time.time() - first_step < 3 + 3  # it is near 1; the room is for a machine with other work
        assert state(tabs[0]) == "Running"
        for tab in tabs:
            seen = rows(tab)
            until(tab, lambda tab=tab, seen=seen: rows(tab) > seen + 8)
            assert rows(tab) > seen + 8
            assert overflow(tab) <= 0
            until(tab, lambda tab=tab: ink(tab) > 300)
        assert "Gradient flow" in tabs[0].text_content("#probes")
        assert tabs[0].text_content("#title") == "Sequential, as it trains"
        training.kill()
    for tab in tabs:
        until(tab, lambda tab=tab: "has ended" in state(tab))
        assert state(tab) == "The training's process has ended"


def test_the_words_of_a_chart_tell_what_it_shows(watching, opened, tmp_path):
    store, cell = begin(tmp_path / "run")
    for step in (0, 50, 100):
        store.append(rows_of(cell, step))
    store.append([Record(cell, 100, "p", "", "loss", float("nan"))])
    store.close()
    finding = {"code": "NS101", "severity": "error", "message": "It is so."}
    (tmp_path / "run" / f"findings-{cell}.json").write_text(json.dumps({"findings": [finding]}))
    tab = opened(watching())
    panels, unnamed = ".panel canvas", ".panel canvas:not([aria-label])"
    until(tab, lambda: len(tab.query_selector_all(panels)) > 2 and not tab.query_selector_all(unnamed))
    labels = [canvas.get_attribute("aria-label") for canvas in tab.query_selector_all("canvas")]
    assert labels[0] == (
        "Gradient norm ‖∂L/∂W‖₂: 6 places, features.0 to features.5; steps 0 to 100; values from 0.3679 to 3.713"
    )
    assert "whole model" in labels[2]
    assert "1 value is not finite" in tab.query_selector_all(".panel")[2].text_content()
    assert tab.text_content("#facts").startswith("Step100Rows25")
    assert tab.text_content("#facts").endswith("Read every50 steps")
    assert tab.text_content("#title") == "ResNet, as it trains"
    assert tab.text_content("#sentences") == "NS101 (error): It is so."
    tab.click("summary")
    table = tab.wait_for_selector("table")  # the fold is filled after it has opened
    assert [line.text_content() for line in table.query_selector_all("tbody tr")][:2] == [
        "features.00.3679",
        "features.10.4782",
    ]
    tab.hover("canvas", position={"x": 100, "y": 80})
    until(tab, lambda: tab.is_visible(".tip"))
    assert re.fullmatch(r"features\.\d, step \d+: [\d.]+", tab.text_content(".tip"))


def test_names_that_are_markup_stay_text(watching, opened, tmp_path):
    store, cell = begin(tmp_path / "run", "cell")
    for name in (HOSTILE, "</script><script>document.title='taken'</script>"):
        store.append([Record(cell, step, name, name, name, float(step), name) for step in range(3)])
        store.append([Record(name, 0, name, name, name, 1.0, name)])
    store.close()
    finding = {"code": HOSTILE, "severity": HOSTILE, "message": HOSTILE}
    (tmp_path / "run" / f"findings-{cell}.json").write_text(json.dumps({"findings": [finding]}))
    server = watching()
    tab = opened(server)
    tab.wait_for_selector(".panel canvas[aria-label]")
    tab.click("summary")
    tab.wait_for_selector("table")
    tab.select_option("#cell", HOSTILE)
    tab.wait_for_timeout(1500)
    assert "taken" not in tab.title()
    assert tab.query_selector_all("main img, main script") == []
    assert HOSTILE in tab.text_content("main")
    assert tab.input_value("#cell") == HOSTILE


def test_cells_can_be_chosen_and_the_newest_run_comes_first(watching, opened, tmp_path):
    for started, steps in ((1, 3), (2, 7)):
        store, cell = begin(tmp_path / "run")
        for step in range(steps):
            store.append(rows_of(cell, step))
        store.close()
        path = tmp_path / "run" / f"scope-{cell}.json"
        told = json.loads(path.read_text())
        del told["check"]  # as in a claim of an older version, which proves nothing
        path.write_text(json.dumps(told | {"started": started * 1000.0}))
    tab = opened(watching())
    tab.wait_for_selector("html[data-step='6']", state="attached")
    assert tab.input_value("#cell") == "scope.run2"
    tab.select_option("#cell", "scope")
    tab.wait_for_selector("html[data-step='2']", state="attached")
    tab.wait_for_timeout(1500)
    assert tab.input_value("#cell") == "scope"


def test_a_token_opens_the_page_and_nothing_else_does(watching, opened, tmp_path, browser):
    store, cell = begin(tmp_path / "run")
    store.append(rows_of(cell, 0))
    store.close()
    server = watching(token="a-token-of-ours")
    opened(server).wait_for_selector("html[data-rows='8']", state="attached")
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(f"http://127.0.0.1:{server.port}/")
    until(tab, lambda: "token" in state(tab))
    assert "the address that the command printed" in state(tab)
    assert rows(tab) == 0
    context.close()


def test_a_page_of_another_origin_reads_nothing(watching, tmp_path, browser):
    store, cell = begin(tmp_path / "run")
    store.append(rows_of(cell, 0))
    store.close()
    server, other = watching(), LiveServer(tmp_path / "other", port=0)
    thread = threading.Thread(target=other.serve)
    thread.start()
    context = browser.new_context(bypass_csp=True)
    tab = context.new_page()
    tab.goto(other.url)
    script = """async url => {
      const seen = [];
      for (const mode of ['cors', 'no-cors']) {
        try { const answer = await fetch(url, {mode}); seen.push(answer.type + (await answer.text()).length); }
        catch (error) { seen.push('refused'); }
      }
      return seen;
    }"""
    assert tab.evaluate(script, f"http://127.0.0.1:{server.port}/rows") == ["refused", "refused"]
    assert tab.evaluate(script, f"http://localhost:{server.port}/rows") == ["refused", "refused"]
    context.close()
    other.close()
    thread.join()


def test_a_server_that_ends_is_said_and_one_that_begins_again_is_found(tmp_path, browser):
    store, cell = begin(tmp_path / "run")
    store.append(rows_of(cell, 0))
    store.close()
    context = browser.new_context()
    tab = context.new_page()
    port = 0
    for _ in range(2):
        server = LiveServer(tmp_path / "run", port=port)
        port = server.port
        thread = threading.Thread(target=server.serve)
        thread.start()
        if tab.url == "about:blank":
            tab.goto(server.url)
        until(tab, lambda: rows(tab) == 8 and "does not answer" not in state(tab))
        assert "does not answer" not in state(tab)
        assert len(tab.query_selector_all(".panel")) == 3
        server.close()
        thread.join()
        until(tab, lambda: "does not answer" in state(tab))
        assert "does not answer" in state(tab)
    context.close()
