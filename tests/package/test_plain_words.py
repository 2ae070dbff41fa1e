"""Plain words find the units whose pages are about them."""

import json

import pytest

from normscope import comparing, layers, probes, rules, studies
from normscope._errors import UsageError
from normscope._unit import discover
from normscope.explain import fitting, unit
from normscope.layers import AbstractLayer

UNITS = [*comparing.all_questions(), *studies.all(), *rules.all(), *probes.all(), *discover(layers, AbstractLayer)]


def test_a_title_finds_its_unit_among_the_first_three():
    for known in UNITS:
        found = fitting(known.title(), most=3)
        assert known.CODE in [each.unit.CODE for each in found], known.title()
        assert all(unit(each.name).CODE == each.unit.CODE for each in found)


@pytest.mark.parametrize(
    ("words", "codes"),
    [
        ("vanishing", {"vanishing-at-init", "gamma-cures-vanishing", "gradients", "NS127"}),
        ("gamma", {"gamma-cures-vanishing", "bn-backward-three-terms"}),
        ("learning rate", {"learning-rate-tolerance", "rates", "scale_invariance"}),
        ("why is eval worse than train", {"gap", "statistics_gap", "NS102", "train-test-statistics-gap"}),
        ("Does batch norm fix vanishing gradients?", {"vanishing-at-init", "gradients", "gradient_flow"}),
    ],
)
def test_words_of_a_newcomer_find_units_of_several_kinds(words, codes):
    assert codes <= {each.unit.CODE for each in fitting(words)}


def test_order_case_and_idle_words_do_not_matter():
    assert fitting("the FLAT minimum") == fitting("minimum, flat?")
    assert fitting("why does it") == []


def test_a_word_that_all_units_have_decides_nothing():
    assert [each.name for each in fitting("batch saturation")][:2] == [each.name for each in fitting("saturation")][:2]


@pytest.mark.parametrize("words", [("xyzzy",), ("noisy-batchnrm",), ("probe:vanishing",), ("why", "does", "it"), ("",)])
def test_words_that_fit_nothing_and_a_mistyped_name_are_one_line(refuse, words):
    refuse("explain", *words)
    with pytest.raises(UsageError):
        unit(" ".join(words))


def test_the_command_lists_a_line_for_each_unit_and_a_study_begins_with_its_answer(run):
    lines = run("explain", "vanishing").stdout.splitlines()
    listed = json.loads(run("explain", "vanishing", "--json").stdout)
    assert [line.split()[:2] for line in lines[: len(listed)]] == [[row["name"], row["kind"]] for row in listed]
    for line, row in zip(lines, listed, strict=False):
        if "standing" in row:
            assert line.split(maxsplit=2)[2].lower().startswith(f"{row['standing'].lower()}: ")
    assert {row["kind"] for row in listed if "standing" not in row} <= {"question", "rule", "probe", "layer", "study"}
    assert run("explain", "learning", "rate").stdout == run("explain", "learning rate").stdout


def test_an_exact_name_has_its_page(run):
    assert run("explain", "saturation").stdout.startswith("saturation\n")
