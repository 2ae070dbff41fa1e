"""The Markdown page says what the condensed file holds, the same every time, and keeps what is not its own."""

import json
import re

import pytest
from test_condensed import evidence

from normscope import report
from normscope._errors import StoreError
from normscope.report import CondensedEvidence

# What the author of a page writes around the part that is filled in.
BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"


def test_the_page_is_the_same_every_time_and_from_the_file(tmp_path):
    path = report.save(tmp_path / "e.json", report.dumps(evidence()))
    assert report.page(report.read(path)) == report.page(evidence()) == report.page(evidence())


def test_it_says_verdicts_theory_sentences_errata_times_and_how_it_was_made():
    page = report.page(evidence())
    assert "1 claim: 1 depends on a condition; 1 identity apart: 1 is not measurable." in page
    assert page.index("## Gradients") < page.index("## Identities") < page.index("## Measured against theory")
    assert "## Affine" not in page, "its only claim is an identity"
    answered = "<br>`a-study` | **depends on the depth**<br>dense networks, 8x8 digits | +0.70 (0.25 to no bound) |"
    sentence = (
        "Yes: it is 0.70 higher. But opposite with 20 layers (1.1 times \\| less). Here: dense networks, 8x8 digits."
    )
    assert f"{answered} {sentence} |" in page
    assert "| It is exact.<br>`other` | **not measurable** | – | Not measurable: the error is not a number" in page
    assert "| 20 layers | 1.1 times \\| less | opposite |" in page
    assert "| `a-study` | growth | 1.48 | 1.467 | 1.009 |" in page
    first = "| It helps. | answer | `a-study` **holds**: +0.70 (0.25 to no bound)<br>"
    assert f"{first}`a-study`, deep **holds**: 1.1 times \\| less<br>`gone` |" in page
    assert "| It is old. | comment | Nothing to measure. |" in page
    assert "| A paper | Stated. | Holds. | `other` not measurable |" in page
    assert "| `a-study` | 12 s | `normscope study run a-study --seeds 3` |" in page
    assert "Effects are in natural units, with their 95 % and 97.1 % intervals over seeds" in page
    assert "```sh\nnormscope study run --all --out runs/all\n```" in page
    assert "normscope 0.1.0 and torch 2.13.0; a processor, 2 cores; preset quick, data digits, device cpu" in page


def test_cells_stay_cells_and_no_html_of_others_is_live():
    page = report.page(evidence())
    assert "It is \\| so &lt;img src=x>." in page
    for block in re.findall(r"(?:^\|.*\n)+", page, re.M):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(bars) == 1, block
    assert "\n\n\n" not in page


def test_a_file_with_marks_keeps_all_but_what_is_between_them(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"# Mine\n\n{BEGIN}\nold\n{END}\n\nmore\n", encoding="utf-8")
    for _ in range(2):
        path.write_text(report.into(path, evidence()), encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# Mine\n\n{BEGIN}\n1 claim: 1 depends")
    assert text.endswith(f"|\n{END}\n\nmore\n")
    assert text.count("`a-study`") == 1
    assert "old" not in text
    path.write_text(f"{END} {BEGIN}", encoding="utf-8")
    with pytest.raises(StoreError, match="put both"):
        report.into(path, evidence())
    path.write_bytes(b"\xff")
    with pytest.raises(StoreError, match="cannot read"):
        report.into(path, evidence())


def test_nothing_judged_is_a_page_too():
    page = report.page(CondensedEvidence("Nothing.", (), (), (), ()))
    assert "\n0 claims.\n" in page
    assert json.loads(report.dumps(CondensedEvidence("", (), (), (), ())))["studies"] == []


def test_the_time_in_all_is_the_sum():
    assert "## Time and commands\n\n25 s in all, one cell after the other." in report.page(evidence())  # twice 12.3 s
