"""Files of comparisons: whole or refused in a line, and those of the package."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from normscope import atlas, comparing
from normscope._errors import StoreError, UsageError
from normscope.comparing.condense import without_names

COMMITTED = sorted(Path(str(files("normscope.atlas").joinpath("data"))).glob("*.json"))


def refused(tmp_path, kept, match):
    path = tmp_path / "mine.json"
    path.write_text(atlas.dumps(kept), encoding="utf-8")
    with pytest.raises(StoreError, match=match) as caught:
        atlas.read(path)
    assert "\n" not in str(caught.value)


def test_a_file_is_read_as_it_was_written(tmp_path, kept):
    path = tmp_path / "mine.json"
    path.write_text(atlas.dumps(kept), encoding="utf-8")
    assert atlas.dumps(atlas.read(path)) == atlas.dumps(kept)


def test_a_file_that_is_damaged_or_of_another_kind_is_refused(tmp_path, kept):
    path, document = tmp_path / "mine.json", json.loads(atlas.dumps(kept))
    for change, match in (
        ({"format": "normscope evidence"}, "holds no condensed comparison"),
        ({"version": 9}, "has layout 9, this version reads 1: make it anew"),
        ({"seeds": "0 1 2"}, "is damaged"),
        ({"extra": 1}, "has an unknown 'extra'"),
    ):
        path.write_text(json.dumps(document | change), encoding="utf-8")
        with pytest.raises(StoreError, match=match):
            atlas.read(path)
    path.write_text(atlas.dumps(kept)[:-500], encoding="utf-8")
    with pytest.raises(StoreError, match="is not whole JSON"):
        atlas.read(path)


def altered(kept, **changes):
    """The comparison with its first question's first contrast changed."""
    question, *others = kept.questions
    first, *rest = question.contrasts
    question = replace(question, contrasts=(replace(first, **changes), *rest))
    return replace(kept, questions=(question, *others))


def test_numbers_and_names_that_do_not_fit_are_refused(tmp_path, kept):
    first = kept.questions[0].contrasts[0].first
    for wrong, match in (
        (replace(kept, seeds=(0, 0, 1)), "2 different seeds"),
        (replace(kept, pair=("own", "bare")), "the two arms that decide"),
        (replace(kept, learning={"own": kept.learning["own"]}), "whether it learns"),
        (replace(kept, level=1.5), "level of confidence"),
        (replace(kept, torch=""), "versions of normscope and torch"),
        (replace(kept, questions=()), "a question stands twice, or none is there"),
        (replace(kept, questions=(replace(kept.questions[0], contrasts=()),)), "'gradients' has no contrast"),
        (altered(kept, rule="luck"), "the rule 'luck'"),
        (altered(kept, scale="decibel"), "the scale 'decibel'"),
        (altered(kept, bound=-1.0), "the bound -1.0 is no size"),
        (altered(kept, bound=float("nan")), "the bound nan is no size"),
        (altered(kept, rule="equal_within", bound=0.0), "the bound 0.0 is no size"),
        (altered(kept, limits=(0.0,)), "two limits"),
        (altered(kept, says="it is {amount} larger"), "for something else than the effect"),
        (altered(kept, learn=("bare",)), "an arm that must learn"),
        (altered(kept, first=replace(first, values=(1.0, 2.0))), "numbers of 2 seeds, and the comparison has 3"),
        (altered(kept, effects=(1.0,)), "numbers of 1 seeds"),
        (altered(kept, premises=(replace(kept.learning["own"], rule="luck"),)), "the rule 'luck'"),
    ):
        refused(tmp_path, wrong, match)


def test_a_comparison_of_two_seeds_or_without_a_name_is_not_condensed(comparison):
    for name in (" ", "n" * 121, "a\n"):
        with pytest.raises(UsageError, match="need names of 1 to 120 letters"):
            comparing.condense(comparison, network=name, data="b")
    with pytest.raises(UsageError, match="a variant has both"):
        comparing.condense(comparison, network="a", data="b", differs_in="depth")
    few = comparing.Comparison(comparison.path, seeds=2)
    with pytest.raises(UsageError, match="fewer than 3 seeds"):
        comparing.condense(few, network="a", data="b")


def test_no_sentence_of_a_condensed_comparison_names_a_layer(kept):
    sites = ["", "0", "3.3", "1.0.2", "norm", "layer4.1.bn2", "layer4.1", "layer1"]
    for said, left in (
        ("Is `layer4.1.bn2` dead? Is layer4.1.", "Is `(name left out)` dead? Is (name left out)."),
        ("Is layer1 dead?", "Is (name left out) dead?"),
        ("Is a norm 0 here?", "Is a norm 0 here?"),
        ("It grows by the factor 1.7 against 3.3, up or down.", "It grows by the factor 1.7 against 3.3, up or down."),
        ("Is xlayer1 or layer1.5 dead?", "Is xlayer1 or layer1.5 dead?"),
    ):
        for part in ("says", "reason", "endpoint", "claim"):
            found = without_names(altered(kept, **{part: said}), sites)
            assert found == altered(kept, **{part: left})
    asked = kept.questions[0]
    for part in ("asks", "lacks"):
        named = replace(kept, questions=(replace(asked, **{part: "of layer1"}), *kept.questions[1:]))
        assert getattr(without_names(named, sites).questions[0], part) == "of (name left out)"
    inner = replace(asked.contrasts[0], conditions={"at": "layer1"}, reason="layer1")
    outer = replace(asked.contrasts[0], premises=(inner,))
    (found,) = without_names(replace(kept, questions=(replace(asked, contrasts=(outer,)),)), sites).questions
    assert "layer1" not in repr(found)
    assert without_names(kept, []) == kept


# -- the files of the package ------------------------------------------------------------------------------------------


def test_there_are_files():
    assert len(COMMITTED) >= 2


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_file_can_be_judged_and_says_what_it_rests_on(path):
    found = atlas.read(path)
    assert path.read_text(encoding="utf-8") == atlas.dumps(found)  # nothing was changed by hand that is not read
    assert found.network.layers
    assert found.steps > 1
    assert found.cpu
    assert found.began
    known = {question.CODE: question.NUMBER for question in comparing.all_questions()}
    for answer in atlas.answers_of(found):
        assert known[answer.question.code] == answer.question.number
        verdict = answer.verdict
        if verdict.outcome.decided:
            assert all(premise.met for premise in verdict.premises)
            assert verdict.effect.n >= 3
        else:
            assert answer.sentence.startswith(("Unclear", "Not measurable"))


def test_the_networks_have_names_of_their_own_and_variants_have_a_network():
    networks = [atlas.read(path).network for path in COMMITTED]
    titles = [network.title for network in networks]
    assert len(set(titles)) == len(titles)
    bases = {network.title for network in networks if not network.differs_from}
    assert {network.differs_from for network in networks if network.differs_from} <= bases
