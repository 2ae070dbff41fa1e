"""The condensed form keeps every verdict, and refuses what is not one."""

import json
import math

import pytest

from normscope import report
from normscope._errors import StoreError
from normscope.plots import Table
from normscope.records import Estimate, Outcome, Verdict
from normscope.report import Appendix, Section

PART = Verdict(
    "a-study", "A part.", Outcome.REFUTED, "ratio", Estimate(-0.1, -0.2, 0.1, 0.95, 10, "t", "log-ratio"), 0.4, "So."
)
PRIMARY = Verdict(
    study="a-study",
    claim="It is | so.",
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
TABLE = Table("Growth", ("Width", "Measured", "Theory", "Ratio"), ((64, 1.48, 1.467, 1.009),))


def _document():
    sections = [
        Section(
            "a-study", "A title.", "A claim.", {}, (PRIMARY,), tables=(TABLE,), topic="gradients", texts=("A text",)
        ),
        Section("other", "Another.", "", {}, ()),
    ]
    appendix = Appendix("map", "The map", "What is said.", ("Text", "Studies"), ((("A text",), ("a-study", "gone")),))
    return report.condense(
        sections,
        provenance={"versions": {"torch": "2"}, "cores": {"usable": 2}, "platform": "a machine's own name"},
        times={"a-study": 12.34},
        lede="One study.",
        appendices=[appendix],
    )


def test_a_verdict_comes_back_as_it_was(tmp_path):
    path = report.save(tmp_path / "deep" / "evidence.json", report.dumps(_document()))
    read = report.read(path)
    assert [study["slug"] for study in read["studies"]] == ["a-study"]
    assert report.verdict_of(read["studies"][0]) == PRIMARY
    assert "a machine's own name" not in path.read_text(encoding="utf-8")


def test_an_estimate_that_is_no_number_stays_one(tmp_path):
    lost = Verdict(
        "a", "b.", Outcome.INCONCLUSIVE, "e", Estimate(math.nan, -math.inf, math.inf, 0.95, 0, "none"), 0.1, ""
    )
    section = Section("a", "A.", "b.", {}, (lost,))
    text = report.dumps(report.condense([section], provenance={}, times={}))
    effect = report.verdict_of(json.loads(text)["studies"][0]).effect
    assert math.isnan(effect.point)
    assert (effect.low, effect.high) == (-math.inf, math.inf)


def test_the_page_has_verdict_theory_map_and_times():
    page = report.markdown(_document(), command="normscope study run --all")
    assert page == report.markdown(json.loads(report.dumps(_document())), command="normscope study run --all")
    assert "| It is \\| so.<br>`a-study` | **supported** | +0." in page
    assert "Because of numbers." in page
    assert "| 64 | 1.48 | 1.467 | 1.009 |" in page or "| 64 | 1.48 | 1.47 | 1.01 |" in page
    assert "| A text | `a-study` supported<br>`gone` |" in page
    assert "| `a-study` | 12 s |" in page
    assert "1 claims judged: 1 supported, 0 refuted, 0 inconclusive." in page


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"format": "normscope evidence", "ver',
        "[]",
        '{"format": "normscope evidence", "version": 99, "studies": []}',
        '{"format": "normscope evidence", "version": 1}',
        '{"format": "normscope evidence", "version": 1, "studies": [{"slug": "a", "verdict": {"outcome": "maybe"}}]}',
    ],
)
def test_what_is_not_evidence_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "evidence.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match=r"evidence\.json") as caught:
        report.read(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_target_that_cannot_be_written(tmp_path):
    with pytest.raises(StoreError, match="cannot read"):
        report.read(tmp_path / "gone.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        report.save(tmp_path / "file" / "deeper.json", "x")


def test_filters_and_appendices_of_a_page_of_many(tmp_path):
    hostile = '"><script>alert(1)</script>'
    sections = [
        Section(
            f"s{i}", f"S{i}.", "", {}, (PRIMARY if i % 2 else PART,), topic=hostile if i else "t", texts=(hostile, "b")
        )
        for i in range(7)
    ]
    appendix = Appendix("map", "The map", "", ("Text", "Studies"), (((hostile,), ("s1", "gone")),))
    page = report.write(tmp_path / "a.html", title="T", sections=sections, appendices=[appendix]).read_text("utf-8")
    assert hostile not in page
    for key in ("outcome", "topic", "texts"):
        assert f'<select data-key="{key}">' in page
    assert '<section id="appendix-map"' in page
    assert '<a href="#study-s1">s1</a>' in page
    assert "<li>gone</li>" in page
    few = report.write(tmp_path / "b.html", title="T", sections=sections[:2]).read_text("utf-8")
    assert 'class="filters"' not in few
