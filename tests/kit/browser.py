"""What tests in a browser share."""

import shutil
import time

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

IN_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page is not looked at"),
    pytest.mark.skipif(sync_playwright is None, reason="playwright is not installed: the page is not looked at"),
]
READY = "html[data-charts=ready]"


def overflow(tab):
    return tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def until(tab, holds, seconds=60):
    """Wait until what a page draws or moves is there; where it never is, the last look says so."""
    end = time.monotonic() + seconds
    while True:
        try:
            if holds() or time.monotonic() > end:
                return
        except Exception:  # what it looks at is not drawn yet
            if time.monotonic() > end:
                raise
        tab.wait_for_timeout(50)
