"""Check a training set-up by all rules: once, or while it trains; repair what was found."""

from normscope.checking.checks import check as check, check_state as check_state, fix as fix
from normscope.checking.findings import Findings as Findings, Fixed as Fixed
from normscope.checking.watch import (
    FindingWarning as FindingWarning,
    RuleWarning as RuleWarning,
    Watch as Watch,
)
