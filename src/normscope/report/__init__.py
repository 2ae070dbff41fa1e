"""The report: verdicts, figures and tables in, one self-contained HTML page out; and a table for the terminal.

Verdicts without their records go to one small JSON file, and from there to Markdown.
"""

from normscope.records.addresses import save as save
from normscope.report._atlas import (
    NetworkCell as NetworkCell,
    NetworkColumn as NetworkColumn,
    NetworkRow as NetworkRow,
    write_atlas as write_atlas,
)
from normscope.report._comparison import (
    AskedQuestion as AskedQuestion,
    ComparedPage as ComparedPage,
    MadeArm as MadeArm,
    comparison_html as comparison_html,
    write_comparison as write_comparison,
)
from normscope.report._condensed import (
    CondensedEvidence as CondensedEvidence,
    CondensedStudy as CondensedStudy,
    Picture as Picture,
    TheoryRow as TheoryRow,
    dumps as dumps,
    picture_of as picture_of,
    read as read,
    sections_of as sections_of,
    theory_rows as theory_rows,
)
from normscope.report._console import console as console
from normscope.report._markdown import into as into, markdown_table as markdown_table, page as page
from normscope.report._marks import between_marks as between_marks
from normscope.report._overview import FEW as FEW
from normscope.report._page import write as write
from normscope.report._questions import (
    disagreements as disagreements,
    questions_page as questions_page,
    write_questions as write_questions,
)
from normscope.report._scope import (
    Line as Line,
    ScopePage as ScopePage,
    scope_html as scope_html,
    write_scope as write_scope,
)
from normscope.report._sections import Section as Section, duration as duration
from normscope.report._text import terminal as terminal
from normscope.report._words import (
    amount_of as amount_of,
    counted as counted,
    described_amount as described_amount,
    margin_of as margin_of,
    point_and_interval as point_and_interval,
    sign_of as sign_of,
    tally as tally,
)
from normscope.report.check import (
    Checked as Checked,
    FixNote as FixNote,
    GapNote as GapNote,
    LossNote as LossNote,
    RuleNote as RuleNote,
    check_github as check_github,
    check_json as check_json,
    check_sarif as check_sarif,
    check_text as check_text,
    loss_words as loss_words,
)
