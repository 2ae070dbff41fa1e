"""Parts of the atlas stand between the marks of a page, and all else on the page stays."""

from dataclasses import replace

import pytest

from normscope import atlas
from normscope._errors import StoreError

END = "<!-- atlas: end -->"


def costing(kept, effect):
    """Return the comparison with an effect on the cost of a step that is beyond its margin by far in every seed."""
    effects = tuple(effect + 0.01 * seed for seed in range(len(kept.seeds)))

    def of(question):
        first, *others = question.contrasts
        return replace(question, contrasts=(replace(first, effects=effects, learn=(), premises=()), *others))

    return replace(kept, questions=tuple(of(each) if each.code == "cost" else each for each in kept.questions))


BASE = costing(atlas.committed().networks[0], 2.0)


def variant(name, thing, kept=BASE):
    """Return a comparison as a variant of the first network."""
    network = replace(kept.network, name=name, differs_from=BASE.network.title, differs_in=thing)
    return replace(kept, network=network)


@pytest.fixture(scope="module")
def planted():
    """One network and two variants: in one of them a step of the network takes longer without its norms."""
    return atlas.Atlas([BASE, variant("twin", "the name"), variant("other", "the cost", costing(BASE, -2.0))])


def test_what_stands_between_marks_is_written_anew_and_nothing_else(tmp_path, planted):
    path = tmp_path / "page.md"
    path.write_text(
        f"# Mine\n\n<!-- atlas: table of cost -->\nold\n{END}\nmore\n\n<!-- atlas: networks -->\n{END}\n\nlast\n",
        encoding="utf-8",
    )
    for _ in range(2):
        path.write_text(atlas.into(path, planted), encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    table, networks = atlas.table(planted, ["cost"]), atlas.networks(planted)
    assert text == (
        f"# Mine\n\n<!-- atlas: table of cost -->\n{table}{END}\nmore\n\n<!-- atlas: networks -->\n{networks}{END}"
        "\n\nlast\n"
    )
    assert len(table.splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# Mine\n", "no place for the atlas"),
        (f"{END}\n<!-- atlas: table -->\n", "has a mark alone"),
        ("<!-- atlas: table -->\n", "has a mark alone"),
        (f"<!-- atlas: table of speed, sped -->\n{END}\n", "no question 'sped'"),
    ],
)
def test_a_page_without_a_place_is_refused(tmp_path, planted, text, said):
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match=said):
        atlas.into(path, planted)


def test_a_page_that_is_not_there_is_refused(tmp_path, planted):
    with pytest.raises(StoreError, match="no place for the atlas"):
        atlas.into(tmp_path / "page.md", planted)


def test_the_table_has_a_row_a_question_and_a_column_a_network(planted):
    head, _, *rows = atlas.table(planted).splitlines()
    assert head == f"| question | {BASE.network.name}<br>on {BASE.network.data} |"  # a variant is no column
    for row, line in zip(planted.rows, rows, strict=True):
        asked, cell = line.strip("| ").split(" | ")
        assert asked == f"{row.number}. {row.asks}<br>`{row.code}`: {row.measured}"
        assert cell.startswith(f"**{row.cells[0].outcome.value}**")


def test_a_word_that_turns_stands_in_the_sentence_and_others_below_it(planted):
    lines = atlas.sentences(planted).splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("12. *"))
    asked, stands, turned, stays = lines[at:]
    assert asked.endswith(f"* {planted.rows[-1].source}")
    assert stands == f"    - {planted.rows[-1].sentences[0]}"
    title = BASE.network.title
    assert turned.startswith(f"    - With the cost alone changed, the word for the {title} turns from *holds* (")
    assert " to *opposite* (" in turned
    assert stays.startswith(f"    - The word for the {title} does not turn: *holds* (")
    assert stays.endswith(") with the name alone changed.")


def test_a_variant_that_tells_nothing_is_left_out(planted):
    lines = atlas.sentences(planted).splitlines()
    told = sum("with the name alone changed" in line for line in lines)
    assert told == sum(row.cells[0].outcome.decided for row in planted.rows)
    assert "*unclear* with the name alone changed" not in "\n".join(lines)


def test_the_table_of_networks_has_the_options_of_the_command(planted):
    text = atlas.networks(planted)
    head, _, first, twin, *_ = text.splitlines()
    assert head == "| network | layers | options of `normscope compare` | time |"
    for said in (f"--arms {','.join(BASE.arms)}", f"--seeds {len(BASE.seeds)}", f"--steps {BASE.steps}", "--rates "):
        assert said in first
    assert "--questions" not in first
    assert f"<br>differs from the {BASE.network.title} in the name" in twin
    few = replace(variant("few", "the questions"), questions=BASE.questions[:2], rates=(1.0,))
    line = atlas.networks(atlas.Atlas([BASE, few])).splitlines()[3]
    assert f"--steps {BASE.steps} --questions {BASE.questions[0].code},{BASE.questions[1].code}`" in line
    assert BASE.torch in text.splitlines()[-1]


def test_the_page_lists_the_sentences_the_quantity_and_the_variants_that_do_not_turn(tmp_path, planted):
    page = atlas.write_page(tmp_path / "atlas.html", planted).read_text(encoding="utf-8")
    row = planted.rows[-1]
    assert f'<p class="prose">Measured: {row.measured}.</p>' in page
    assert "It asks the claim that the study tests: <code>ics-gradient-shift</code>." in page
    assert "<li>With the cost alone changed, " in page
    assert page.count("<li>The word for the ") + page.count("<li>Whether the word ") == sum(
        len(row.tested) for row in planted.rows
    )
    assert f'data-label="{BASE.network.name}, {BASE.network.data}"' in page


def test_the_table_of_claims_has_each_study_under_the_word_of_the_question_that_asks_its_claim(planted):
    _, _, *lines = atlas.claims(planted).splitlines()
    asked = [(row, unit) for row in planted.rows for unit in row.claims]
    assert len(lines) == len(asked) >= 9
    for line, (row, unit) in zip(lines, asked, strict=True):
        claim, cell = line.strip("| ").split(" | ")
        assert claim.startswith(f"{unit.CLAIM}<br>`{unit.CODE}`, {unit.SOURCES[0]}; question {row.number}")
        assert unit.ON_A_CASE.question == row.code
        assert unit.ON_A_CASE.differs in claim
        assert cell.startswith(f"**{row.cells[0].outcome.value}**")
