"""The condensed file keeps every verdict as it was judged, and refuses what is not one."""

import dataclasses
import itertools
import json
import math

import pytest

from normscope import report
from normscope._errors import StoreError
from normscope.plots import Figure, Table
from normscope.records import Answer, Condition, Erratum, Estimate, Outcome, Premise, Sentence, Verdict, json as encoder
from normscope.report import CondensedEvidence, CondensedStudy, Picture, TheoryRow

PART = Verdict(
    "a-study",
    "It is | so <img src=x>.",
    Outcome.OPPOSITE,
    "ratio",
    Estimate(-0.1, -0.2, 0.1, 0.95, 10, "t", "log-ratio", "per layer"),
    0.4,
    "So.",
    primary=False,
    name="deep",
    conditions=(Condition("depth", "20 layers"),),
    premises=(Premise("It trains (seen: it does: holds)", True),),
    amount="1.1 times | less",
)
PRIMARY = Verdict(
    study="a-study",
    claim="It is | so <img src=x>.",
    outcome=Outcome.HOLDS,
    endpoint="difference",
    effect=Estimate(0.7, 0.25, math.inf, 0.971, 20, "bootstrap"),
    margin=0.2,
    reason="Because\nof numbers.",
    sources=("One", "Two"),
    p_value=0.01,
    adjusted_p=0.03,
    parts=(PART,),
    name="shallow",
    margin_reason="three test images",
    conditions=(Condition("depth", "3 layers"),),
    finding="it is\n0.70 higher",
    amount="+0.70 (0.25 to no bound)",
    here="dense networks, 8x8 digits",
)
LOST = dataclasses.replace(
    PRIMARY,
    study="other",
    claim="It is exact.",
    outcome=Outcome.NOT_MEASURABLE,
    effect=Estimate(math.nan, -math.inf, math.inf, 0.95, 0, "none", "error"),
    p_value=None,
    adjusted_p=None,
    parts=(),
    why="the error is not a number in every seed",
)


def study(verdict=PRIMARY, **changed):
    one = CondensedStudy(
        slug=verdict.study,
        card=3,
        title="A title.",
        topic="gradients",
        texts=("A text",),
        verdict=verdict,
        theory=(TheoryRow("growth", "1.48", "1.467", "1.009"),),
        preset="quick",
        data="digits",
        device="cpu",
        seeds=(0, 1, 2),
        seconds=12.3,
        normscope="0.1.0",
        torch="2.13.0",
        cores=2,
        cpu="a processor",
        command=f"normscope study run {verdict.study} --seeds 3",
        picture=Picture("loss", "Loss", "How to read it.", "It falls.", '{"mark":"line"}'),
    )
    return dataclasses.replace(one, **changed)


def evidence():
    return CondensedEvidence(
        lede="Two studies.",
        commands=("normscope study run --all --out runs/all",),
        studies=(study(), study(LOST, topic="affine", theory=(), cores=None, picture=None)),
        sentences=(
            Sentence(
                "A text",
                "answer",
                "It helps.",
                (Answer("a-study"), Answer("a-study", "deep", negated=True), Answer("gone")),
            ),
            Sentence("A text", "comment", "It is old.", (), "Nothing to measure."),
        ),
        errata=(Erratum("A paper", "Stated.", "Holds.", ("other",), "loss"),),
    )


def test_what_was_judged_comes_back_as_it_was(tmp_path):
    path = report.save(tmp_path / "deep" / "evidence.json", report.dumps(evidence()))
    read = report.read(path)
    assert read.studies[0] == evidence().studies[0]
    lost = read.studies[1].verdict.effect
    assert math.isnan(lost.point)
    assert (lost.low, lost.high) == (-math.inf, math.inf)
    assert (read.sentences, read.errata, read.commands) == (
        evidence().sentences,
        evidence().errata,
        evidence().commands,
    )
    assert report.dumps(read) == path.read_text(encoding="utf-8")


def altered(change):
    document = json.loads(report.dumps(evidence()))
    change(document)
    return json.dumps(document)


def _set(*path_and_value):
    *path, key, value = path_and_value

    def change(document):
        for step in path:
            document = document[step]
        document[key] = value

    return change


DAMAGED = {
    "empty": "",
    "cut short": report.dumps(evidence())[:400],
    "another document": '{"cells": []}',
    "a list": "[]",
    "deep": "[" * 100_000,
    "a number that is none": report.dumps(evidence()).replace("12.3", "NaN", 1),
    "a key twice": report.dumps(evidence()).replace('"card": 3,', '"card": 3, "card": 4,', 1),
    "the version of three words": altered(_set("version", 1)),
    "an unknown word of a premise": altered(
        _set("studies", 0, "verdict", "parts", 0, "premises", 0, {"words": "x", "met": 1})
    ),
    "a condition without a value": altered(_set("studies", 0, "verdict", "conditions", 0, {"name": "depth"})),
    "a picture that is a chart": altered(_set("studies", 0, "picture", {"spec": {}})),
    "another version": altered(_set("version", 99)),
    "a version that is true": altered(_set("version", True)),
    "no studies": altered(lambda d: d.pop("studies")),
    "a field too many": altered(_set("studies", 0, "mood", "good")),
    "a field of a part missing": altered(lambda d: d["studies"][0]["verdict"]["parts"][0].pop("margin")),
    "another outcome": altered(_set("studies", 0, "verdict", "outcome", "<b>maybe</b>")),
    "words for a number": altered(_set("studies", 0, "verdict", "effect", "point", "large")),
    "true for a number": altered(_set("studies", 0, "verdict", "margin", True)),
    "a number for words": altered(_set("studies", 0, "slug", 3)),
    "words for a list": altered(_set("studies", 0, "texts", "A text")),
    "a list for a study": altered(_set("studies", 0, [])),
    "half a seed": altered(_set("studies", 0, "seeds", [0, 0.5])),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_what_is_not_evidence_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "evidence.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match=r"evidence\.json .*--condense") as caught:
        report.read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_bytes_that_are_no_text_and_paths_that_are_no_file(tmp_path):
    (tmp_path / "evidence.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreError, match="no text in UTF-8"):
        report.read(tmp_path / "evidence.json")
    for path in (tmp_path / "gone.json", tmp_path):
        with pytest.raises(StoreError, match="cannot read"):
            report.read(path)
    for path in (tmp_path / "evidence.json" / "deeper.json", tmp_path):
        with pytest.raises(StoreError, match="cannot write"):
            report.save(path, "x")
    assert [one.name for one in tmp_path.iterdir()] == ["evidence.json"]


def test_every_number_survives_the_file():
    for value in (0.1, -1e-300, 5e300, math.inf, -math.inf, 3):
        assert encoder.build(float, json.loads(json.dumps(encoder.plain(float(value))))) == value
    assert math.isnan(encoder.build(float, encoder.plain(math.nan)))


def test_rows_of_theory_are_taken_from_tables_that_have_them():
    tables = [
        Table("Against theory", ("Quantity", "Measured", "Theory", "Ratio"), (("growth", 1.48, "1.467", "1.009"),)),
        Table("Stream", ("Scheme", "Measured", "Theory", "Ratio"), (("batch norm", "19", "17", "1.1"),)),
        Table("Errors", ("Batch", "Layer", "Error", "Theory", "Ratio", "Cosine"), ((64, 1, "0.2", "0.18", "1.1", 0),)),
        Table("How the arms end", ("Arm", "Loss"), (("none", 1.0),)),
    ]
    assert list(report.theory_rows(tables)) == [
        TheoryRow("growth", "1.48", "1.467", "1.009"),
        TheoryRow("Stream: batch norm", "19", "17", "1.1"),
        TheoryRow("Error: batch 64, layer 1", "0.2", "0.18", "1.1"),
    ]


def test_the_old_layout_is_refused_with_how_to_make_it_anew(tmp_path):
    path = report.save(tmp_path / "evidence.json", altered(_set("version", 1)))
    with pytest.raises(StoreError, match="has layout 1, this version reads 2: make it anew from its runs"):
        report.read(path)


def figure(count, arms=2):
    rows = [{"arm": f"a{arm}", "x": float(x), "mid": 0.123456} for arm in range(arms) for x in range(count)]
    return Figure("f", "F", "c", "a", {"data": {"values": rows}, "mark": {"type": "line"}})


def test_a_picture_is_kept_small_by_fewer_steps_and_keeps_its_ends():
    assert report.picture_of([]) is None
    small = report.picture_of([figure(10)])
    assert json.loads(small.spec) == figure(10).spec
    large = report.picture_of([figure(3000)])
    assert len(large.spec) <= 20_000
    kept = json.loads(large.spec)["data"]["values"]
    for arm in ("a0", "a1"):
        places = [row["x"] for row in kept if row["arm"] == arm]
        assert (places[0], places[-1]) == (0, 2999)
        assert len(places) > 50
        gaps = {b - a for a, b in itertools.pairwise(places)}
        assert max(gaps) - min(gaps) <= 1, "evenly spaced"
    wide = {"data": {"values": [{"x": 1, "t": "y" * 30_000}]}}
    assert report.picture_of([Figure("f", "F", "c", "a", wide)]) is None


def test_a_page_is_written_from_the_file_alone(tmp_path):
    pages = {"a-study": {"Method": "It was done."}}
    sections = report.sections_of(evidence(), pages)
    page = report.write(tmp_path / "p.html", title="T", sections=sections).read_text(encoding="utf-8")
    for words in ("◐</span> depends on the depth", "0.70 (0.25 to no bound)", "three test images", "It was done.",
                  "1.467",
                  "20 layers", "It trains (seen: it does: holds)", "How to read it.", "&lt;img src=x&gt;"):  # fmt: skip
        assert words in page, words
    assert '"mark":"line"' in page
    assert page.count('class="chart"') == 1, "what was not measured has no picture"


@pytest.mark.parametrize("spec", ["", "[]", "{", '{"a": NaN}', "[" * 100_000])
def test_a_picture_that_is_no_chart_is_refused(spec):
    broken = study(picture=Picture("f", "F", "c", "a", spec))
    with pytest.raises(StoreError, match=r"the picture of a-study is damaged: .*--condense"):
        report.sections_of(dataclasses.replace(evidence(), studies=(broken,)), {})
