"""The atlas: comparisons of many networks beside each other, from files that hold numbers and no records."""

from normscope.atlas.answers import (
    KeptAnswer as KeptAnswer,
    answers_of as answers_of,
    not_learning as not_learning,
    outcomes_of as outcomes_of,
)
from normscope.atlas.atlas import Atlas as Atlas, Row as Row, committed as committed
from normscope.atlas.cell import Cell as Cell
from normscope.atlas.file import COMMAND as COMMAND, dumps as dumps, read as read
from normscope.atlas.kept import LEARNING as LEARNING, KeptContrast as KeptContrast, keep as keep
from normscope.atlas.layout import (
    KeptComparison as KeptComparison,
    KeptQuestion as KeptQuestion,
    Network as Network,
)
from normscope.atlas.markdown import (
    claims as claims,
    into as into,
    networks as networks,
    sentences as sentences,
    table as table,
)
from normscope.atlas.page import write_page as write_page
