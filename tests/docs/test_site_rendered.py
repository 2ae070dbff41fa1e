"""The rendered site: complete, readable on a phone and in the dark, and nothing in it comes from elsewhere."""

import os
import re
import subprocess
import sys

import pytest

from kit.browser import IN_BROWSER, overflow, until
from kit.guides import ROOT
from sitemaker import links

pytestmark = [pytest.mark.extras, pytest.mark.slow]
TYPESET = "!document.querySelector('script[src*=mathjax]') || !!document.querySelector('mjx-container')"
LOOKED_AT = (
    "index", "questions", "atlas", "atlas-page", "evidence", "evidence-page", "gallery", "checking", "layers",
    "figures-of-papers", "changelog",
    "reference/probes/curvature", "reference/probes/scale_invariance", "reference/layers/lp_norm",
    "reference/rules/index", "reference/rules/NS102", "reference/studies/landscape-smoothness",
    "reference/questions/gradients", "reference/api/index", "reference/commands", "measurements/layers",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, made once."""
    for package in ("sphinx", "furo", "myst_parser", "sphinx_design", "sphinx_copybutton"):
        pytest.importorskip(package, reason=f"{package} is not installed: `make docs` installs it")
    folder = tmp_path_factory.mktemp("made") / "site"
    path = os.pathsep.join([str(ROOT / "docs"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-m", "sitemaker", str(folder)]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # Sphinx warns, or a link leads nowhere
    assert re.match(r"\d+ pages: ", done.stdout)
    return folder


def test_every_page_has_its_markdown_and_is_listed(site):
    listed = (site / "llms.txt").read_text(encoding="utf-8")
    pages = [path for path in site.rglob("*.html") if path.name not in {"search.html", *links.WHOLE}]
    assert len(pages) > 100
    for page in pages:
        path = page.relative_to(site).with_suffix(".md")
        assert (site / path).is_file()
        assert f"]({path.as_posix()})" in listed
        assert f'href="{path.name}"' in page.read_text(encoding="utf-8")


def test_markdown_leads_to_files_that_are_there(site):
    for page in site.rglob("*.md"):
        text = re.sub(r"^```.*?^```|`[^`]+`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", text):
            assert re.match(r"[a-z]+:", target) or (page.parent / target).is_file(), (page, target)


@pytest.fixture
def tab(browser, request):
    """A tab of a width and a ground, and what it complained about or asked of a network."""
    width, ground = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=ground)
    page = context.new_page()
    page.wrong = []
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on(
        "request", lambda r: page.wrong.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None
    )
    yield page
    context.close()


def in_browser(test):
    """Mark a test that looks at the site in Chromium."""
    for mark in IN_BROWSER:
        test = mark(test)
    return test


@in_browser
@pytest.mark.parametrize("tab", [(w, g) for w in (390, 1280) for g in ("light", "dark")], indirect=True)
def test_pages_fit_their_width_and_show_their_mathematics(site, tab):
    for name in LOOKED_AT:
        tab.goto((site / f"{name}.html").as_uri())
        until(tab, lambda: tab.evaluate(TYPESET))
        assert overflow(tab) <= 0, name
        assert tab.locator("mjx-merror").count() == 0, name
        broken = "[...document.images].filter(i => i.offsetParent && i.complete && !i.naturalWidth).map(i => i.src)"
        assert tab.evaluate(broken) == [], name
        assert tab.wrong == [], name


@in_browser
@pytest.mark.parametrize("tab", [(1280, "dark")], indirect=True)
def test_the_picture_of_the_ground_is_shown(site, tab):
    tab.goto((site / "reference/studies/vanishing-at-init.html").as_uri())
    shown = tab.evaluate("[...document.images].filter(i => i.offsetParent).map(i => i.src)")
    assert len(shown) == 1
    assert shown[0].endswith("vanishing-at-init.dark.svg")


@in_browser
@pytest.mark.parametrize("tab", [(1280, "light"), (390, "light")], indirect=True)
@pytest.mark.parametrize(
    ("clicks", "answer", "command"),
    [
        (
            ["tr:has-text('vanishing') >> a"],
            "it cures vanishing",
            "normscope compare train.py:make_case --questions gradients",
        ),
        (
            ["tr:has-text('eval worse') >> a"],
            "running statistics are not those of the data",
            "normscope check train.py:make_case",
        ),
        (
            ["tr:has-text('figure of a paper') >> a"],
            "effective beta-smoothness",
            "normscope compare train.py:make_case --questions smoothness --export pdf",
        ),
    ],
)  # fmt: skip
def test_an_asker_finds_answer_and_command(site, tab, clicks, answer, command):
    tab.goto((site / "index.html").as_uri())
    for click in clicks:
        tab.locator(f"article >> {click}").first.click()
    tab.wait_for_load_state()
    text = " ".join(tab.locator("article").inner_text().split())
    assert answer in text
    assert command in text
