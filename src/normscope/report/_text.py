r"""From the markup of docstrings to HTML, with everything escaped, and to plain text for a terminal.

Understood: paragraphs, bullet and numbered lists, indented or fenced blocks, ``code``, **strong**, *emphasis*, web
links, and mathematics: ``$\gamma/\sigma$`` in a line and ``$$...$$`` set apart become readable signs. A role
of reStructuredText shows its content as code. What is not understood stands as it was written.
"""

import re
from collections.abc import Iterator

from markupsafe import Markup, escape

from normscope.report._tex import formulas, mathematics, plain

_INLINE = re.compile(
    r"(?P<role>:[A-Za-z][\w:-]*:`(?P<rolebody>[^`]+)`)"
    r"|(?P<math>(?<![\w$\\])\$(?P<mathbody>[^\s$](?:[^$]*[^\s$])?)\$(?![\w$]))"
    r"|(?P<double>``(?P<doublebody>.+?)``)"
    r"|(?P<single>`(?P<singlebody>[^`]+)`)"
    r"|(?P<link>\[(?P<linktext>[^\]]+)\]\((?P<href>https?://[^\s)]+)\))"
    r"|(?P<strong>\*\*(?P<strongbody>[^*\n]+?)\*\*)"
    r"|(?P<em>(?<![\w*])\*(?P<embody>[^*\s](?:[^*\n]*[^*\s])?)\*(?![\w*]))",
    re.DOTALL,
)
_BULLET = re.compile(r"^\s*(?:[-*•]|(?P<number>\d+)[.)])\s+")


def html(text: str) -> Markup:
    """Render a text of several blocks.

    Args:
        text: Docstring markup from anyone; none of it reaches the page unescaped.
    """
    parts = []
    for number, part in enumerate(formulas(text)):
        parts += [Markup('<p class="formula">{}</p>').format(mathematics(part))] if number % 2 else [*_blocks(part)]
    return Markup("\n").join(parts)


def inline(text: str) -> Markup:
    """Render a text within one block."""
    out, last = Markup(""), 0
    for match in _INLINE.finditer(text):
        out += escape(text[last : match.start()]) + _span(match)
        last = match.end()
    return out + escape(text[last:])


def terminal(text: str) -> str:
    """Render a text of several blocks as plain text: its lines and lists as they are, without marks for emphasis.

    Args:
        text: Docstring markup.
    """
    parts = []
    for number, part in enumerate(formulas(text)):
        parts.append(f"    {plain(part)}\n" if number % 2 else _INLINE.sub(_bare, part))
    return "".join(parts)


def _bare(match: re.Match[str]) -> str:
    """Return a match of the inline pattern as it stands in a terminal."""
    if match["math"]:
        return plain(match["mathbody"])
    if match["role"]:
        return f"`{_named(match)}`"
    if match["double"] or match["single"]:
        return f"`{match['doublebody'] or match['singlebody']}`"
    if match["link"]:
        return f"{match['linktext']} ({match['href']})"
    return match["strongbody"] or match["embody"]


def _named(match: re.Match[str]) -> str:
    """Return the name that a role of reStructuredText shows."""
    body = match["rolebody"]
    return (re.sub(r"\s*<[^>]*>$", "", body) or body).lstrip("~")


def _span(match: re.Match[str]) -> Markup:
    """Render a match of the inline pattern."""
    kind = match.lastgroup or ""
    if match["role"]:
        return Markup("<code>{}</code>").format(_named(match))
    if match["math"]:
        return mathematics(match["mathbody"])
    if match["double"] or match["single"]:
        return Markup("<code>{}</code>").format(match["doublebody"] or match["singlebody"])
    if match["link"]:
        return Markup('<a href="{}" rel="noopener noreferrer">{}</a>').format(match["href"], match["linktext"])
    if match["strong"]:
        return Markup("<strong>{}</strong>").format(match["strongbody"])
    return Markup("<em>{}</em>").format(match["embody"]) if match["em"] else escape(match[kind])


def _blocks(text: str) -> Iterator[Markup]:
    """Yield paragraphs, lists and preformatted blocks."""
    for block in _split(text):
        lines = block.split("\n")
        if lines[0].startswith("```"):
            yield Markup("<pre><code>{}</code></pre>").format("\n".join(lines[1:]))
        elif all(line.startswith("    ") for line in lines if line) and not _BULLET.match(lines[0]):
            yield Markup("<pre><code>{}</code></pre>").format("\n".join(line[4:] for line in lines))
        else:
            yield from _prose(lines)


def _split(text: str) -> Iterator[str]:
    """Split at blank lines, but not within a fence."""
    block: list[str] = []
    fenced = False
    for line in [*text.strip("\n").expandtabs(4).split("\n"), ""]:
        if line.strip().startswith("```"):
            if fenced:
                yield "\n".join(block)
                block, fenced = [], False
                continue
            if block:
                yield "\n".join(block)
            block, fenced = ["```"], True
        elif fenced or line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block = []
    if block:
        yield "\n".join(block)


def _prose(lines: list[str]) -> Iterator[Markup]:
    """Yield a paragraph and the list that may follow it without a blank line."""
    paragraph: list[str] = []
    items: list[list[str]] = []
    numbered = False
    for line in lines:
        bullet = _BULLET.match(line)
        if bullet:
            numbered = numbered or bool(bullet["number"])
            items.append([line[bullet.end() :]])
        elif items and line.startswith("  "):
            items[-1].append(line.strip())
        elif items:  # a line at the margin ends the list
            yield from _flush(paragraph, items, numbered)
            paragraph, items, numbered = [line], [], False
        else:
            paragraph.append(line)
    yield from _flush(paragraph, items, numbered)


def _flush(paragraph: list[str], items: list[list[str]], numbered: bool) -> Iterator[Markup]:
    """Yield the paragraph, then the list."""
    if paragraph:
        joined = " ".join(line.strip() for line in paragraph)
        head = re.match(r"^#{1,6}\s+(.*)$", joined)
        yield (
            Markup("<p><strong>{}</strong></p>").format(inline(head[1]))
            if head
            else Markup("<p>{}</p>").format(inline(joined))
        )
    if items:
        rows = Markup("").join(Markup("<li>{}</li>").format(inline(" ".join(item))) for item in items)
        yield Markup("<{0}>{1}</{0}>").format(Markup("ol" if numbered else "ul"), rows)
