"""The condensed file keeps every verdict as it was judged, and refuses what is not one."""

import dataclasses
import json
import math

import pytest

from normscope import report
from normscope._errors import StoreError
from normscope.plots import Table
from normscope.records import Erratum, Estimate, Outcome, Sentence, Verdict, json as encoder
from normscope.report import CondensedEvidence, CondensedStudy, TheoryRow

PART = Verdict(
    "a-study", "A part.", Outcome.REFUTED, "ratio", Estimate(-0.1, -0.2, 0.1, 0.95, 10, "t", "log-ratio"), 0.4, "So."
)
PRIMARY = Verdict(
    study="a-study",
    claim="It is | so <img src=x>.",
    outcome=Outcome.SUPPORTED,
    endpoint="difference",
    effect=Estimate(0.7, 0.25, math.inf, 0.971, 20, "bootstrap"),
    margin=0.2,
    reason="Because\nof numbers.",
    sources=("One", "Two"),
    p_value=0.01,
    adjusted_p=0.03,
    parts=(PART,),
)
LOST = dataclasses.replace(
    PRIMARY,
    study="other",
    outcome=Outcome.INCONCLUSIVE,
    effect=Estimate(math.nan, -math.inf, math.inf, 0.95, 0, "none"),
    p_value=None,
    parts=(),
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
    )
    return dataclasses.replace(one, **changed)


def evidence():
    return CondensedEvidence(
        lede="Two studies.",
        commands=("normscope study run --all --out runs/all",),
        studies=(study(), study(LOST, topic="affine", theory=(), cores=None)),
        sentences=(
            Sentence("A text", "answer", "It helps.", ("a-study", "gone")),
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
    with pytest.raises(StoreError, match="not whole JSON"):
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
