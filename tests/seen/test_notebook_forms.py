"""Findings and verdicts show themselves in a notebook."""

from normscope import checking
from normscope.records import Estimate, Finding, Outcome, Severity, Verdict

EVIL = "<b>x</b>"


def test_findings_show_themselves_in_a_notebook_with_everything_escaped():
    finding = Finding("NS101", "slug", Severity.ERROR, f"bad {EVIL}", (EVIL, "b"))
    found = checking.Findings((finding,), ((finding, EVIL),), None, ("NS101",), (("NS102", EVIL),), (("NS103", EVIL),))
    text = found._repr_html_()
    assert "1 finding of 1 rule<" in text
    assert "<code>&lt;b&gt;x" in text
    assert text.count("&lt;b&gt;x") == 6
    assert "<b>x" not in text


def test_a_verdict_shows_claim_word_and_numbers_in_a_notebook():
    estimate = Estimate(0.7, 0.25, 1.0, 0.95, 20, "bootstrap")
    part = Verdict("s", f"part {EVIL}", Outcome.UNCLEAR, "e", estimate, 0.1, "r", primary=False)
    verdict = Verdict("s", f"claim {EVIL}", Outcome.HOLDS, "e", estimate, 0.1, "because", parts=(part,), amount="×2")
    text = verdict._repr_html_()
    assert "<b>holds</b> ×2" in text
    assert "because" in text
    assert "unclear" in text
    assert "<b>x" not in text
