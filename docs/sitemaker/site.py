"""Makes the site in a folder: pages for Sphinx, the rendered site, Markdown beside each page, and `llms.txt`."""

import re
import shutil
from pathlib import Path

from normscope import verdicts
from normscope.explain import committed
from sitemaker import atlas, evidence, links, tree
from sitemaker.tree import SiteError, Tree

_TOCTREE = re.compile(r"^```\{toctree\}\n.*?^```\n?", re.MULTILINE | re.DOTALL)
_CARD = re.compile(
    r"^:::+\{grid-item-card\} (?P<title>[^\n]+)\n:link: (?P<link>\S+)\n(?::[\w-]+:[^\n]*\n)*\n(?P<text>.*?)^:::+\n",
    re.MULTILINE | re.DOTALL,
)
_COLONS = re.compile(r"^:::+.*\n(?::[\w-]+:.*\n)*", re.MULTILINE)
_SUMMARY = (
    "Measures what normalization does to your network: layers, probes, checks, comparisons, studies with verdicts."
)
#: Sections of `llms.txt`: the folder of the pages in it, by title; pages of no folder come first.
_PARTS = {
    "Reference: layers": "reference/layers/",
    "Reference: probes": "reference/probes/",
    "Reference: rules": "reference/rules/",
    "Reference: studies": "reference/studies/",
    "Reference: questions of a comparison": "reference/questions/",
    "Reference: Python API": "reference/api/",
    "Measurements": "measurements/",
}


def make(target: Path) -> int:
    """Make the site.

    Args:
        target: The folder of the site; what is in it is removed.

    Returns:
        How many pages it has.

    Raises:
        SiteError: A link leads nowhere, or Sphinx warns.
    """
    source = target.with_name(f"{target.name}-source")
    for folder in (source, target):
        shutil.rmtree(folder, ignore_errors=True)
    pages = tree.collect()
    tree.write(pages, source)
    evidence.draw(source / evidence.PICTURES)
    _render(source, target)
    shutil.rmtree(target / "_sources", ignore_errors=True)  # the Markdown lies beside the pages
    for path, text in pages.pages.items():
        (target / path).write_text(plain(text), encoding="utf-8")
    for path, file in pages.files.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / path)
    shutil.copytree(source / evidence.PICTURES, target / evidence.PICTURES)
    (target / "llms.txt").write_text(llms(pages), encoding="utf-8")
    verdicts.write_condensed(committed(), target / "evidence-page.html")
    atlas.write(target)
    if wrong := links.check(target):
        raise SiteError("; ".join(wrong))
    return len(pages.pages)


def plain(text: str) -> str:
    """Return a page's Markdown without what Sphinx alone reads: cards become list items, tables of contents go."""
    cards = _CARD.sub(lambda m: f"- [{m['title']}]({m['link']}.md): {' '.join(m['text'].split())}\n", text)
    return re.sub(r"\n{3,}", "\n\n", _COLONS.sub("", _TOCTREE.sub("", cards))).rstrip() + "\n"


def llms(pages: Tree) -> str:
    """Return the list of pages for readers that are programs, by the convention of llmstxt.org."""
    parts = ["# normscope", f"> {_SUMMARY}", "Every page of this site is beside itself as Markdown."]
    listed = {title: [p for p in pages.pages if p.startswith(folder)] for title, folder in _PARTS.items()}
    others = [path for path in pages.pages if not any(path in group for group in listed.values())]
    for title, group in ({"Pages": others} | listed).items():
        rows = [f"- [{pages.title(path)}]({path}){_lead(pages.pages[path])}" for path in group]
        parts.append(f"## {title}\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _lead(text: str) -> str:
    """Return the line under a unit's title, which says in a sentence what the unit is; empty on other pages."""
    found = re.search(r"^# .*\n\n\*(.+)\*\n", text)
    return f": {found[1]}" if found else ""


def _render(source: Path, target: Path) -> None:
    from sphinx.cmd.build import build_main

    here = Path(__file__).parent
    words = ["-q", "-W", "--keep-going", "-j", "auto", "-b", "html", "-c", str(here), "-d", f"{source}/.doctrees"]
    if build_main([*words, str(source), str(target)]):
        raise SiteError("Sphinx warns: mend the pages that it names above")
    from sitemaker.conf import mathjax

    for path, file in mathjax():
        place = target / "_static" / "mathjax" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
