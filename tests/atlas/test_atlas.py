"""Networks beside each other: sentences over networks, what separates them, and a reader's own beside them."""

from dataclasses import replace

from normscope import atlas
from normscope.atlas import Atlas
from normscope.records import Outcome

# An effect beyond its margin by far in every seed, in the direction of the claim, against it, within it, and over it.
EFFECTS = {
    Outcome.HOLDS: (2.0, 2.1, 2.2),
    Outcome.OPPOSITE: (-2.0, -2.1, -2.2),
    Outcome.NO_EFFECT: (0.0, 0.001, -0.001),
    Outcome.UNCLEAR: (-9.0, 0.0, 9.0),
}


def network(kept, name, outcome, *, differs_from="", differs_in="", lacks="", pair=("own", "none")):
    """A network that answers the first question, and it alone, with a word."""
    question = kept.questions[0]
    contrast = replace(question.contrasts[0], effects=EFFECTS.get(outcome, (2.0, 2.1, 2.2)), rule="margin", bound=0.5)
    called = replace(kept.network, name=name, data="data", differs_from=differs_from, differs_in=differs_in)
    asked = replace(question, contrasts=(contrast,), lacks=lacks)
    return replace(kept, network=called, questions=(asked,), pair=pair)


def row(*comparisons):
    (found,) = Atlas(comparisons).rows
    return found


def test_a_sentence_names_every_network_under_its_word(kept):
    found = row(
        network(kept, "one", Outcome.HOLDS),
        network(kept, "two", Outcome.OPPOSITE),
        network(kept, "three", Outcome.NO_EFFECT),
        network(kept, "four", Outcome.UNCLEAR),
        network(kept, "five", Outcome.HOLDS, lacks="nobody looked"),
        network(kept, "six", Outcome.HOLDS),
    )
    assert [cell.outcome.value for cell in found.cells] == [
        "holds", "opposite", "no effect that matters", "unclear", "not measurable", "holds",
    ]  # fmt: skip
    assert found.differs
    said = found.sentence
    assert said.startswith(
        "Holds on 2 of 6: one on data (8.17 times less); six on data (8.17 times less). Opposite on 1"
    )
    assert "No effect that matters on 1 of 6: three on data" in said
    assert "Unclear on 1 of 6: four on data." in said
    assert "Not measurable on 1 of 6: five on data (nobody looked)." in said
    assert said.endswith("What separates these networks is not known.")


def test_where_all_agree_nothing_separates(kept):
    found = row(network(kept, "one", Outcome.HOLDS), network(kept, "two", Outcome.HOLDS))
    assert not found.differs
    assert found.sentence.startswith("Holds on all 2 networks: one on data")
    assert "separates" not in found.sentence


def test_a_variant_that_turns_the_word_is_told_and_is_no_column(kept):
    base = network(kept, "one", Outcome.HOLDS)
    deep = network(kept, "deep", Outcome.OPPOSITE, differs_from="one on data", differs_in="the depth (20 for 5)")
    same = network(kept, "wide", Outcome.HOLDS, differs_from="one on data", differs_in="the width")
    lost = network(kept, "lost", Outcome.OPPOSITE, differs_from="none on data", differs_in="all")
    found = row(base, deep, same, lost, network(kept, "two", Outcome.OPPOSITE))
    assert [cell.network.name for cell in found.cells] == ["one", "two"]
    assert [each.turns for each in found.separations] == [True, False]
    turned = (
        "With the depth (20 for 5) alone changed, the word for the one on data turns from *holds* (8.17 times less)"
    )
    assert turned in found.sentence
    assert "the width" not in found.sentence
    assert found.tested == (
        "The word for the one on data does not turn: *holds* (8.17 times less), and *holds* (8.17 times less) "
        "with the width alone changed.",
    )


def test_an_undecided_word_turns_nothing(kept):
    base = network(kept, "one", Outcome.HOLDS)
    for outcome in (Outcome.UNCLEAR, Outcome.HOLDS):
        other = network(kept, "deep", outcome, differs_from="one on data", differs_in="depth")
        found = row(base, other)
        assert not found.separations[0].turns
        assert found.tested[0].startswith(
            "The word for the one on data does not turn: " if outcome.decided
            else "Whether the word for the one on data turns is not known: *holds* (8.17 times less); *unclear* with "
        )  # fmt: skip


def test_a_variant_that_is_held_against_another_arm_differs_in_two_things_and_is_left_out(kept):
    base = network(kept, "one", Outcome.HOLDS)
    other = network(
        kept, "deep", Outcome.OPPOSITE, differs_from="one on data", differs_in="depth", pair=("own", "rescaled")
    )
    arms = {**kept.arms, "rescaled": "without norms but rescaled"}
    other = replace(other, arms=arms, learning={**kept.learning, "rescaled": kept.learning["own"]})
    assert row(base, other).separations == ()


def test_ones_own_answer_stands_beside_networks_that_compare_the_same_arms(kept):
    found = Atlas([
        network(kept, "one", Outcome.HOLDS),
        network(kept, "two", Outcome.OPPOSITE),
        network(kept, "three", Outcome.UNCLEAR),
        network(kept, "four", Outcome.HOLDS, pair=("own", "fixed-affine")),
    ])  # fmt: skip
    pair = ("own", "none")
    assert found.beside("gradients", Outcome.HOLDS, pair) == (
        "In the atlas: the same on 1 of 2 (one on data); opposite on two on data."
    )
    assert found.beside("gradients", Outcome.NO_EFFECT, pair) == (
        "In the atlas: the same on none of 2; holds on one on data; opposite on two on data."
    )
    assert found.beside("gradients", Outcome.UNCLEAR, pair) == (
        "In the atlas: holds on one on data; opposite on two on data."
    )
    assert found.beside("gradients", Outcome.HOLDS, ("own", "rescaled")).startswith("In the atlas: the same on 1 of 2")
    assert found.beside("gradients", Outcome.HOLDS, ("own", "fixed-affine")).endswith("1 of 1 (four on data).")
    assert found.beside("gradients", Outcome.HOLDS, ("own", "layer")) == ""
    assert found.beside("speed", Outcome.HOLDS, pair) == ""
    assert Atlas([]).beside("gradients", Outcome.HOLDS, pair) == ""


def test_the_page_has_every_network_every_word_and_ones_own(tmp_path, kept):
    found = Atlas([
        network(kept, "one", Outcome.HOLDS),
        network(kept, "two", Outcome.OPPOSITE),
        network(kept, "deep", Outcome.OPPOSITE, differs_from="one on data", differs_in="the depth"),
    ])  # fmt: skip
    mine = [network(kept, "<mine>", Outcome.NO_EFFECT), replace(kept, network=replace(kept.network, name="whole"))]
    pages = {"gradients": {"Threats": "Beware of skips."}}
    page = atlas.write_page(tmp_path / "deep" / "atlas.html", found, own=mine, pages=pages).read_text(encoding="utf-8")
    for words in ("one", "two", "&lt;mine&gt;", "whole", "yours", "Beware of skips.", "no effect that matters"):
        assert words in page
    assert "the word for the one on data turns from" in page
    assert "<mine>" not in page
    assert "The same questions on 2 networks" in page
    assert "1 variant with one thing changed says what separates them. Your network stands beside them." in page


def test_a_network_that_does_not_learn_without_norms_is_told_beside_what_it_stands(kept):
    arms = {**kept.arms, "rescaled": "without norms but rescaled"}
    other = network(kept, "one", Outcome.HOLDS, pair=("own", "rescaled"))
    other = replace(other, arms=arms, learning={**kept.learning, "rescaled": kept.learning["own"]})
    assert row(other).sentence.startswith(
        "Holds on the one network: one on data, beside itself without norms but rescaled (8.17 times less)."
    )
