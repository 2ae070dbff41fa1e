"""Docstrings as Markdown: paragraphs on one line, sections of arguments as lists."""

import inspect
import re
from collections.abc import Iterator, Sequence

_SECTIONS = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Returns": "Returns",
    "Yields": "Yields",
    "Raises": "Raises",
    "Example": "Example",
    "Examples": "Examples",
}
_LIST = re.compile(r"^(?P<indent>\s*)(?P<mark>[-*•]|\d+[.)])\s+(?P<text>.*)$")
_ROLE = re.compile(r":[A-Za-z][\w:-]*:`~?(?:[^`<]*<)?([^`>]+)>?`")
_NAMED = re.compile(r"^(?P<name>[\w*.`, ]+?)(?: \([^)]*\))?: (?P<text>.*)$")
_CODE = re.compile(r"(``.+?``|`[^`]+`|\$[^$]+\$|https?://\S+)", re.DOTALL)


def markdown(docstring: str, level: int = 2) -> str:
    """Turn a docstring into Markdown.

    Args:
        docstring: Google's style, with ``## `` headings and mathematics between dollars.
        level: Level of its headings.

    Returns:
        The Markdown, without a line break at its end.
    """
    blocks = _blocks(inspect.cleandoc(docstring).split("\n"))
    return "\n\n".join(part for block in blocks for part in _block(block, level))


def prose(text: str) -> str:
    """Return a paragraph on one line, with roles as code and signs of HTML inert."""
    joined = _ROLE.sub(r"`\1`", " ".join(text.split()))
    parts = _CODE.split(joined)
    return "".join(part if number % 2 else part.replace("<", "\\<") for number, part in enumerate(parts))


def sources(listed: Sequence[str]) -> str:
    """Return a list of sources in which numbers of arXiv and issues of GitHub are links."""
    return "\n".join(f"- {_linked(prose(source))}" for source in listed)


def _linked(source: str) -> str:
    source = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)
    return re.sub(r"(?<![\w/])([\w.-]+/[\w.-]+)#(\d+)", r"[\1#\2](https://github.com/\1/issues/\2)", source)


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Yield blocks of lines: split at blank lines, at headings and at sections, but not within a fence."""
    block: list[str] = []
    fenced = apart = False
    for line in [*lines, ""]:
        fence = line.lstrip().startswith("```")
        starts = line.startswith("## ") or line.rstrip(":") in _SECTIONS or line.lstrip().startswith("$$")
        if block and not fenced and not apart and (not line.strip() or starts):
            yield block
            block = []
        if fence:
            fenced = not fenced
        if line.strip() or fenced:
            block.append(line)
        apart = (line.count("$$") % 2 == 1) != apart
        if block and (line.startswith("## ") or (line.rstrip().endswith("$$") and not apart)):
            yield block
            block = []
    if block:
        yield block


def _block(lines: list[str], level: int) -> Iterator[str]:
    first = lines[0]
    if first.startswith("## "):
        yield f"{'#' * level} {first.removeprefix('## ')}"
    elif first.lstrip().startswith("$$"):
        formula = " ".join(" ".join(lines).split()).strip("$").strip()
        yield f"$$\n{formula}\n$$"
    elif first.lstrip().startswith("```"):
        yield "\n".join(lines)
    elif first.rstrip(":") in _SECTIONS and first.endswith(":"):
        yield from _section(_SECTIONS[first.rstrip(":")], inspect.cleandoc("\n" + "\n".join(lines[1:])).split("\n"))
    elif all(line.startswith("    ") for line in lines) and not _LIST.match(first):
        code = inspect.cleandoc("\n" + "\n".join(lines))
        yield f"```text\n{code}\n```"
    else:
        yield from _paragraph(lines)


def _section(title: str, lines: list[str]) -> Iterator[str]:
    """Yield a section of a docstring: its title, then a list of what it names, or its prose."""
    items: list[list[str]] = []
    for line in lines:
        if not line.startswith(" ") and (title not in {"Returns", "Yields"} or not items) and line:
            items.append([line])
        elif items:
            items[-1].append(line.strip())
    yield f"**{title}**"
    rows = []
    for item in items:
        found = _NAMED.match(item[0])
        if found and title not in {"Returns", "Yields"}:
            name = found["name"].replace("`", "")
            rows.append(f"- `{name}`: {prose(' '.join([found['text'], *item[1:]]))}")
        else:
            rows.append(("" if title in {"Returns", "Yields"} else "- ") + prose(" ".join(item)))
    yield "\n".join(rows)


def _paragraph(lines: list[str]) -> Iterator[str]:
    """Yield a paragraph, and the list that may begin within it."""
    text: list[str] = []
    items: list[list[str]] = []
    for line in lines:
        found = _LIST.match(line)
        if found:
            mark = "1." if found["mark"][0].isdigit() else "-"
            items.append([f"{mark} {found['text']}"])
        elif items and line.startswith("  "):
            items[-1].append(line)
        elif items:
            yield from _flush(text, items)
            text, items = [line], []
        else:
            text.append(line)
    yield from _flush(text, items)


def _flush(text: list[str], items: list[list[str]]) -> Iterator[str]:
    if text:
        joined = prose(" ".join(text))
        yield re.sub(r"^([%#+>-])", r"\\\1", re.sub(r"^(\d+)([.)]) ", r"\1\\\2 ", joined))
    if items:
        yield "\n".join(item[0][:2] + prose(" ".join([item[0][2:], *item[1:]])).lstrip() for item in items)
