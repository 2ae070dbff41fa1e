"""Rules that find what is wrong with normalization in a training set-up, prove it with numbers, and repair it."""

from normscope.rules._case import Case, ignore
from normscope.rules._check import Findings, Fixed, all, check, check_state, chosen, fix, get
from normscope.rules._evidence import Evidence
from normscope.rules._gap import Gap, Share
from normscope.rules._rule import AbstractRule
from normscope.rules._watch import FindingWarning, RuleWarning, Watch, refuse

__all__ = [
    "AbstractRule",
    "Case",
    "Evidence",
    "FindingWarning",
    "Findings",
    "Fixed",
    "Gap",
    "RuleWarning",
    "Share",
    "Watch",
    "all",
    "check",
    "check_state",
    "chosen",
    "fix",
    "get",
    "ignore",
    "refuse",
]
