import pytest

from kit.browser import READY


@pytest.fixture
def opened(browser):
    """Open a page and, at the end, hold it to having been quiet and alone."""
    contexts, noise = [], []

    def go(path, width=1280, scheme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        context.set_default_timeout(120_000)  # of a machine with other work
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: noise.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: noise.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (noise.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else noise.append(r.url))
        tab.goto(path.as_uri())
        tab.wait_for_selector(READY, state="attached")
        return tab

    yield go
    for context in contexts:
        context.close()
    assert noise == []
