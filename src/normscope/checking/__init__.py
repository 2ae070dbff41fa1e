"""Check a training set-up by all rules: once, or while it trains; repair what was found."""

from normscope.checking.checks import check as check, check_state as check_state
from normscope.checking.findings import Findings as Findings, Fixed as Fixed, RuleWarning as RuleWarning
from normscope.checking.fixing import fix as fix
from normscope.checking.watch import FindingWarning as FindingWarning, Watch as Watch
