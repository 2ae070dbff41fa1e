"""The report: verdicts, figures and tables in, one self-contained HTML page out; and a table for the terminal."""

from normscope.report._check_json import check_json as check_json
from normscope.report._check_sarif import check_sarif as check_sarif
from normscope.report._check_text import check_text as check_text
from normscope.report._checked import (
    Checked as Checked,
    FixNote as FixNote,
    GapNote as GapNote,
    RuleNote as RuleNote,
)
from normscope.report._console import console as console
from normscope.report._page import Section as Section, write as write
