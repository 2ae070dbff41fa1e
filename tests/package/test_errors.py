"""Messages: one line, and nothing that a terminal obeys."""

import pytest
from hypothesis import given, settings, strategies as st

from normscope._errors import one_line, printable


@settings(max_examples=40)
@given(st.text())
def test_a_message_is_one_line_that_a_terminal_only_shows(text):
    line = one_line(text)
    assert line.isprintable()
    assert printable(line) == line
    if text.isprintable() and " ".join(text.split()) == text and len(text) <= 1000:
        assert line == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\rb\x07", "a\\rb\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("\ud800", "\\ud800"),
        ("\u202egnp", "\\u202egnp"),
        ("日本語 é", "日本語 é"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown


def test_of_a_long_message_the_beginning_and_the_end_are_kept():
    line = one_line(f"begin {'x' * 100_000} end", longest=300)
    assert len(line) <= 300
    assert line.startswith("begin x")
    assert line.endswith("x end")
