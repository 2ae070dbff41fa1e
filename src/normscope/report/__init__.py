"""The report: verdicts, figures and tables in, one self-contained HTML page out; and a table for the terminal."""

from normscope.report._condensed import (
    condense as condense,
    dumps as dumps,
    markdown as markdown,
    read as read,
    row as row,
    save as save,
    verdict_of as verdict_of,
)
from normscope.report._console import console as console
from normscope.report._page import Appendix as Appendix, Section as Section, write as write
