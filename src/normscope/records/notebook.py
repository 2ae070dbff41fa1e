"""Small pieces of HTML for a notebook: no script, no style but their own, everything escaped."""

import html
import re
from collections.abc import Iterable

_CARD = "font:14px/1.5 system-ui,sans-serif;border:1px solid #8886;border-radius:8px;padding:.6em .9em;max-width:60em"
_COLOURS = {
    "broken": "#b84300",
    "error": "#b84300",
    "costly": "#8a6100",
    "warning": "#8a6100",
    "notable": "#0a74b8",
    "info": "#0a74b8",
}


def card(parts: Iterable[str]) -> str:
    """Return pieces of HTML in a frame."""
    return f'<div style="{_CARD}">{"".join(parts)}</div>'


def head(words: str) -> str:
    """Return a heading."""
    return f'<p style="font-weight:600;margin:.5em 0 .1em">{html.escape(words)}</p>'


def paragraph(markup: str) -> str:
    """Return a paragraph of text that is HTML already."""
    return f'<p style="margin:.2em 0">{markup}</p>'


def items(rows: Iterable[tuple[str, str]]) -> str:
    """Return a list of texts, each with a word before it that may be empty; some words have a colour."""
    found = []
    for word, text in rows:
        colour = _COLOURS.get(word, "inherit")
        label = f'<b style="color:{colour}">{html.escape(word)}</b> ' if word else ""
        found.append(f"<li>{label}{with_code(text)}</li>")
    return f'<ul style="margin:.1em 0;padding-left:1.3em">{"".join(found)}</ul>'


def with_code(text: str) -> str:
    """Escape a text, and set what stands between backquotes as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))
