"""``normscope atlas`` in the terminal, and ``--markdown``: parts of the atlas in a page of the user's."""

import json

import pytest

from normscope import atlas

FOUND = atlas.committed()


def test_it_prints_every_question_with_its_sentence(run, tmp_path):
    text = run("atlas", "--page", tmp_path / "atlas.html").stdout
    for row in FOUND.rows:
        assert f"{row.number:2d}. {row.asks}\n    {row.sentence.replace('*', '')}\n" in text


@pytest.mark.long
def test_markdown_is_written_between_marks_in_every_page(run, refuse, tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    page.write_text("# A\n\n<!-- atlas: sentences -->\n<!-- atlas: end -->\n", encoding="utf-8")
    other.write_text("# B\n", encoding="utf-8")
    words = ("atlas", "--page", tmp_path / "atlas.html", "--markdown", page)
    assert "no place for the atlas" in refuse(*words, "--markdown", other)
    assert page.read_text(encoding="utf-8").endswith("sentences -->\n<!-- atlas: end -->\n"), "nothing was written"
    assert f"Written to {page}" in run(*words).stdout
    assert FOUND.rows[0].sentences[0] in page.read_text(encoding="utf-8")
    assert json.loads(run(*words, "--json").stdout)["markdown"] == [str(page)]
    assert "markdown" not in json.loads(run(*words[:3], "--json").stdout)
