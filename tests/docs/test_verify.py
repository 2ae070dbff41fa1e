"""The Python of docs/verify.md runs, and prints what stands below it, but for the digits of errors."""

import re

from kit.guides import ROOT, blocks


def without_errors(text):
    return re.sub(r"\(relative error [^)]*\)", "()", text).split()


def test_the_code_of_the_guide_prints_what_the_guide_shows(capsys):
    text = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    names = {}
    for block in blocks(text, "python"):
        exec(compile(block, "verify.md", "exec"), names)
    assert without_errors(capsys.readouterr().out) == without_errors("\n".join(blocks(text, "text")))
