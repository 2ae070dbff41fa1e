"""How Sphinx renders the site; `sitemaker.site` writes the pages and starts Sphinx."""

import re
from importlib.metadata import files
from pathlib import Path
from typing import Any

import normscope

HERE = Path(__file__).resolve().parent

project = "normscope"
version = release = normscope.__version__
html_title = f"normscope {release}"
language = "en"
extensions = ["myst_parser", "sphinx.ext.mathjax", "sphinx_copybutton", "sphinx_design"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
myst_links_external_new_tab = False
html_theme = "furo"
html_theme_options = {"top_of_page_buttons": ["view"], "footer_icons": []}
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
templates_path = [str(HERE / "templates")]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_use_index = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
mathjax_path = "mathjax/tex-chtml.js"
suppress_warnings = ["misc.highlighting_failure"]  # output of a terminal is no program
nitpicky = True

_IMAGE = re.compile(
    r"^(?P<link>\[)?!\[(?P<alt>[^\]]*)\]\((?P<path>[^)]+)\.svg\)(?:\]\((?P<page>[^)]+)\))?$", re.MULTILINE
)


def mathjax() -> list[tuple[str, Path]]:
    """Return the files of MathJax that a page loads, with their path below its script."""
    found = []
    for file in files("sphinx-mathjax-offline") or ():
        _, inside, path = file.as_posix().partition("static/mathjax/")
        if inside and (path == "tex-chtml.js" or path.startswith("output/chtml/fonts/woff-v2/")):
            found.append((path, Path(str(file.locate()))))
    return found


def _two_grounds(app: Any, page: str, source: list[str]) -> None:
    """Show a picture that was drawn for a light ground and for a dark ground on the page that has this ground."""

    def both(match: re.Match[str]) -> str:
        dark = Path(app.srcdir, page).parent / f"{match['path']}.dark.svg"
        if not dark.is_file():
            return match[0]
        made = []
        for ground, suffix in (("light", ""), ("dark", ".dark")):
            target = f":target: {match['page'].replace('.md', '.html')}\n" if match["page"] else ""
            options = f":alt: {match['alt']}\n:class: only-{ground} picture\n{target}"
            made.append(f"```{{image}} {match['path']}{suffix}.svg\n{options}```")
        return "\n\n".join(made)

    source[0] = _IMAGE.sub(both, source[0])


def setup(app: Any) -> None:
    """Let Sphinx call what this file adds."""
    app.connect("source-read", _two_grounds)
