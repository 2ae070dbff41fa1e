"""``normscope atlas`` and ``normscope report --condense`` of a comparison, as a user types them."""

import json
from dataclasses import replace

import pytest

from normscope import atlas


@pytest.fixture(scope="module")
def mine(kept, tmp_path_factory):
    path = tmp_path_factory.mktemp("condensed") / "mine.json"
    path.write_text(atlas.dumps(replace(kept, network=replace(kept.network, name="<mine>"))), encoding="utf-8")
    return path


@pytest.mark.long
def test_a_variant_is_condensed_with_the_names_it_is_given(comparison, kept, tmp_path, run):
    path = tmp_path / "deep.json"
    words = ("--network", "deep on blobs on a table", "--differs", "the way from far to near from mine on blobs")
    run("report", comparison.path, "--condense", path, *words)
    found = atlas.read(path)
    assert (found.network.name, found.network.data) == ("deep on blobs", "a table")
    assert (found.network.differs_in, found.network.differs_from) == ("the way from far to near", "mine on blobs")
    assert atlas.dumps(replace(found, network=kept.network)) == atlas.dumps(kept)


def test_a_network_of_ones_own_stands_beside_the_atlas(mine, tmp_path, run):
    page = tmp_path / "atlas.html"
    found = run("atlas", mine, "--page", page)
    networks = atlas.committed().networks
    assert found.stdout.startswith(f"The networks: {networks[0].network.title}")
    assert found.stdout.count("    Yours, <mine> on blobs: ") == 12
    assert "In the atlas: " in found.stdout
    assert "&lt;mine&gt;" in page.read_text(encoding="utf-8")


@pytest.mark.long
def test_the_atlas_as_json_has_every_network_and_every_word(mine, tmp_path, run):
    found = json.loads(run("atlas", mine, "--page", tmp_path / "atlas.html", "--json").stdout)
    known = atlas.committed()
    assert len(found["networks"]) == len(known.networks) + len(known.variants) + 1
    assert [each["own"] for each in found["networks"]].count(True) == 1
    assert [each["question"] for each in found["questions"]] == [row.code for row in known.rows]
    assert all(answer["verdict"]["outcome"] for each in found["networks"] for answer in each["answers"])


def test_it_prints_every_question_with_its_sentence(run, tmp_path):
    text = run("atlas", "--page", tmp_path / "atlas.html").stdout
    for row in atlas.committed().rows:
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
    assert atlas.committed().rows[0].sentences[0] in page.read_text(encoding="utf-8")
    assert json.loads(run(*words, "--json").stdout)["markdown"] == [str(page)]
    assert "markdown" not in json.loads(run(*words[:3], "--json").stdout)


def test_bad_words_end_in_a_line(comparison, mine, tmp_path, refuse):
    report, out = ("report", comparison.path, "--condense", tmp_path / "x.json"), ("--page", tmp_path / "p.html")
    assert "needs --network 'NAME on DATA'" in refuse(*report)
    assert "needs --network 'NAME on DATA'" in refuse(*report, "--network", "mine")
    assert "--differs takes 'THING from NAME on DATA'" in refuse(*report, "--network", "a on b", "--differs", "depth")
    assert "give that too" in refuse(*report[:2], "--network", "a on b")
    assert "holds no condensed comparison" in refuse("atlas", write(tmp_path / "a.json", "{}"), *out)
    assert "is not whole JSON" in refuse("atlas", write(tmp_path / "a.json", mine.read_text()[:99]), *out)
    assert "holds no condensed verdicts: `normscope atlas FILE` reads it" in refuse("report", mine)
    assert not (tmp_path / "x.json").exists()
    assert not (tmp_path / "p.html").exists()


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path
