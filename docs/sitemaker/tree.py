"""All pages of the site as Markdown, with the links between them made to fit; a link that leads nowhere is an error."""

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sitemaker import api, atlas, commands, evidence, units

ROOT = Path(__file__).resolve().parents[2]
#: Pages that lie elsewhere than their address on the site says.
_MOVED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "examples/README.md": "examples.md"}
_EVIDENCE = (
    "Each study has a page with its picture, its contrasts and its method: follow its name in the tables. "
    '<a href="evidence-page.html">The page with all pictures</a> has filters by word, topic and text, as '
    "`normscope report` writes it."
)
_ATLAS = (
    f'<a href="{atlas.PAGE}">The page with all pictures</a> shows each question over the networks, with intervals and '
    "premises, as `normscope atlas` writes it."
)
_DRAWN = "docs/images/questions/"
_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2[ ]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(rf"{_FENCE.pattern}|(?<!`)(`+)(?!`).*?(?<!`)\3(?!`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<head>!?\[(?:[^\[\]]|\[[^\]]*\]\([^)]*\))*\]\()(?P<target>[^)\s]+)\)")
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
_CODED = re.compile(r"(?<![`\[])`([\w-]+)`(?!`)(?![^\[\]\n]*\]\()")


class SiteError(Exception):
    """A page of the site is not as it must be; the message names the page."""


@dataclass
class Tree:
    """The site before it is rendered.

    Attributes:
        pages: Markdown of each page by its path below the root.
        files: Files to copy, by their path below the root.
        wrong: What is wrong with links, a line each.
    """

    pages: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def title(self, path: str) -> str:
        """Return the title of a page.

        Raises:
            SiteError: The page has none.
        """
        found = _TITLE.search(self.pages[path])
        if found is None:
            raise SiteError(f"{path} has no title: begin it with '# '")
        return found[1].strip().strip("`")


def collect() -> Tree:
    """Return all pages with their links.

    Raises:
        SiteError: A link leads nowhere, or a page has no title.
    """
    tree = Tree()
    written = {source: (ROOT / source).read_text(encoding="utf-8") for source in _sources()}
    addresses = {source: _address(source) for source in written}
    for source, text in written.items():
        tree.pages[addresses[source]] = _relinked(text, source, addresses, tree)
    for path, text in _generated():
        tree.pages[path] = text
    tree.pages["examples.md"] += _scripts()
    tree.pages["index.md"] = with_all_guides(tree.pages)
    tree.pages["evidence.md"] = _with_interactive(tree.pages["evidence.md"], _EVIDENCE)
    tree.pages["atlas.md"] = _with_interactive(atlas.with_questions(tree.pages["atlas.md"]), _ATLAS)
    linked = _unit_links()
    for path, text in tree.pages.items():
        tree.pages[path] = _with_unit_links(text, path, linked)
    for path in tree.pages:
        tree.title(path)
    tree.wrong += dead_ends(tree)
    if tree.wrong:
        raise SiteError("; ".join(tree.wrong))
    return tree


def prose_of(text: str) -> str:
    """Return a page's text without its fenced blocks."""
    return _FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """Return the addresses of a page's headings, as MyST and GitHub make them."""
    found: set[str] = set()
    for head in re.findall(r"^#{1,6} (.+)$", prose_of(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).replace("`", "").strip().lower()
        slug = base = re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain))
        number = 0
        while slug in found:
            number += 1
            slug = f"{base}-{number}"
        found.add(slug)
    return found


def _sources() -> list[str]:
    """Return the Markdown files of the repository that are pages, relative to its root."""
    found = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks/results").glob("*.md"))]
    return [*(path.relative_to(ROOT).as_posix() for path in found), *_MOVED]


def _address(source: str) -> str:
    if source in _MOVED:
        return _MOVED[source]
    return source.removeprefix("docs/").replace("benchmarks/results/", "measurements/")


def _generated() -> Iterator[tuple[str, str]]:
    yield from units.pages()
    yield from api.pages()
    yield "reference/commands.md", commands.page()
    yield "gallery.md", evidence.gallery()
    yield "measurements/index.md", _measurements()


def _measurements() -> str:
    parts = ["# Measurements", "What the package itself costs and how often it is right, measured by its benchmarks."]
    names = sorted(path.stem for path in (ROOT / "benchmarks/results").glob("*.md"))
    rows = []
    for name in names:
        title = _TITLE.search((ROOT / f"benchmarks/results/{name}.md").read_text(encoding="utf-8"))
        rows.append(f"- [{title[1] if title else name}]({name}.md)")
    listed = "\n".join(names)
    return "\n\n".join([*parts, "\n".join(rows), f"```{{toctree}}\n:hidden:\n\n{listed}\n```"]) + "\n"


def _scripts() -> str:
    """Return the training scripts, each under its name."""
    return "".join(
        f"\n## {path.name}\n\n```python\n{path.read_text(encoding='utf-8').rstrip()}\n```\n"
        for path in sorted((ROOT / "examples").glob("*.py"))
    )


def with_all_guides(pages: dict[str, str]) -> str:
    """Return the front page, whose list of guides has every page of ``docs`` that no list of it names."""
    front = pages["index.md"]
    named = set(re.findall(r"^[\w/-]+$", front, re.MULTILINE))
    others = [path.removesuffix(".md") for path in pages if "/" not in path and path != "index.md"]
    head, mark, rest = front.partition(":caption: Guide\n\n")
    return "".join([head, mark, *(f"{name}\n" for name in sorted(others) if name not in named), rest])


def _with_interactive(text: str, said: str) -> str:
    """Return a page that leads, under its title, to the page with all pictures."""
    head, _, rest = text.partition("\n\n")
    return f"{head}\n\n{said}\n\n{rest}"


def _relinked(text: str, source: str, addresses: dict[str, str], tree: Tree) -> str:
    """Return a page's text with links that fit the site; what is linked and no page is copied."""
    here = posixpath.dirname(addresses[source])

    def fitted(match: re.Match[str]) -> str:
        target, hash_, anchor = match["target"].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path.startswith(_DRAWN):  # drawn anew for both grounds
            place = f"{evidence.PICTURES}/{posixpath.basename(path)}"
        elif path in addresses:
            place = addresses[path]
        elif (ROOT / path).is_file():
            place = path.removeprefix("docs/")
            tree.files[place] = ROOT / path
        elif posixpath.normpath(posixpath.join(here, target)).startswith("reference/") or target == "gallery.md":
            return match[0]  # a page that is written when the site is made
        else:
            tree.wrong.append(f"{source} links to {match['target']}, which is not there")
            return match[0]
        return f"{match['head']}{posixpath.relpath(place, here or '.')}{hash_}{anchor})"

    return _outside(_CODE, text, lambda part: _LINK.sub(fitted, part))


def _outside(kept: re.Pattern[str], text: str, change: Callable[[str], str]) -> str:
    """Return a text whose parts outside of a pattern were changed."""
    parts, last = [], 0
    for match in kept.finditer(text):
        parts += [change(text[last : match.start()]), match[0]]
        last = match.end()
    return "".join([*parts, change(text[last:])])


def _unit_links() -> dict[str, str]:
    """Return the pages of units by codes that mean nothing else: studies, rules, and probes of two words or more."""
    found = {}
    for kind in units.kinds():
        for unit in kind.units:
            if kind.folder in {"studies", "rules"} or (kind.folder == "probes" and "_" in unit.CODE):
                found.setdefault(unit.CODE, units.address(kind, unit))
    return found


def _with_unit_links(text: str, path: str, linked: dict[str, str]) -> str:
    """Make the code of a unit, where it stands as code outside of titles and links, a link to the unit's page."""

    def link(match: re.Match[str]) -> str:
        target = linked.get(match[1])
        if target is None or target == path:
            return match[0]
        return f"[`{match[1]}`]({posixpath.relpath(target, posixpath.dirname(path) or '.')})"

    def each_line(part: str) -> str:
        return "\n".join(
            line if line.startswith("#") or line.startswith("[") else _CODED.sub(link, line)
            for line in part.split("\n")
        )

    return _outside(_FENCE, text, each_line)


def dead_ends(tree: Tree) -> Iterator[str]:
    """Yield a line for each link within the site whose page, file or heading is not there."""
    known = {path: anchors(text) for path, text in tree.pages.items()}
    drawn = re.compile(rf"^{re.escape(evidence.PICTURES)}/[\w-]+\.svg$")
    for path, text in tree.pages.items():
        for match in _LINK.finditer(_CODE.sub("", text)):
            target, _, anchor = match["target"].partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) if target else path
            if place in tree.files or drawn.match(place):
                continue
            if place not in known:
                yield f"{path} links to {match['target']}, which is not there"
            elif anchor and anchor not in known[place]:
                yield f"{path} links to {match['target']}, a heading that is not there"


def write(tree: Tree, folder: Path) -> None:
    """Write the pages and copy the files into a folder."""
    for path, text in tree.pages.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    for path, source in tree.files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            os.unlink(target)
        target.write_bytes(source.read_bytes())
