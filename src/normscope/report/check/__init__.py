"""The findings of a check: as text for a terminal, as JSON, as SARIF, and as annotations of GitHub."""

from normscope.report.check.checked import (
    Checked as Checked,
    FixNote as FixNote,
    GapNote as GapNote,
    LossNote as LossNote,
    RuleNote as RuleNote,
    loss_words as loss_words,
)
from normscope.report.check.github import check_github as check_github
from normscope.report.check.json import check_json as check_json
from normscope.report.check.sarif import check_sarif as check_sarif
from normscope.report.check.text import check_text as check_text
