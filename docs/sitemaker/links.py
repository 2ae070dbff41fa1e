"""Checks a rendered site: every link within it leads somewhere, and nothing is loaded from elsewhere."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Pages of the report, which hold all they need and are no pages of Sphinx.
WHOLE = {"evidence-page.html", "atlas-page.html"}
_LOADS = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}


class _Page(HTMLParser):
    """What a page links to, what it loads, and the addresses in it."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the attributes of an element that are addresses."""
        for name, value in attrs:
            if name in {"id", "name"} and value:
                self.anchors.add(value)
            if (tag, name) in _LOADS and value:
                self.loads.append(value)
            elif name == "href" and value:
                self.links.append(value)


def check(folder: Path) -> list[str]:
    """Return what is wrong with the pages of a site, a line each.

    Args:
        folder: The site.
    """
    pages = {path: _read(path) for path in sorted(folder.rglob("*.html")) if path.name not in WHOLE}
    wrong = []
    for path, page in pages.items():
        shown = path.relative_to(folder)
        wrong += [f"{shown} loads {load} from elsewhere" for load in page.loads if urlsplit(load).netloc]
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                wrong.append(f"{shown} links to {link}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                wrong.append(f"{shown} links to {link}, a place that is not there")
    return wrong


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page
