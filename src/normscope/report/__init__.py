"""The report: verdicts, figures and tables in, one self-contained HTML page out; and a table for the terminal."""

from normscope.report._console import console as console
from normscope.report._page import Section as Section, write as write
