"""How much a reader is shown at once: visible words and height of a page with nothing unfolded.

    python benchmarks/page_size.py runs/demo/report.html

Needs playwright and the system's Chromium. Words within closed folds are not counted.
"""

import shutil
import sys
from pathlib import Path

WIDTHS = (1280, 390)


def measure(tab):
    """Return (words, height in pixels) of a page as it stands in a browser's tab."""
    words = tab.evaluate("document.body.innerText.split(/\\s+/).filter(Boolean).length")
    return words, tab.evaluate("document.documentElement.scrollHeight")


def main(path):
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for width in WIDTHS:
            tab = browser.new_page(viewport={"width": width, "height": 900})
            tab.goto(Path(path).resolve().as_uri())
            tab.wait_for_selector("html[data-charts=ready]", state="attached")
            words, height = measure(tab)
            print(f"{width} px wide: {words} words, {height} px high")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
