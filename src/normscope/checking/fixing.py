"""Repair what was found, measure what that does to the losses, and take back what harms."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from normscope._errors import NormscopeError, UsageError, shown
from normscope.checking import effect
from normscope.checking.findings import Fixed
from normscope.checking.judging import Failures
from normscope.checking.limit import OverTimeError, TimeLimit
from normscope.checking.pairing import Pairing
from normscope.evidence.case import Case
from normscope.evidence.evidence import Evidence
from normscope.evidence.repairs import RefusedFixError
from normscope.records import Finding
from normscope.rules import get


def fix(
    case: Case,
    findings: Iterable[Finding] | Finding,
    *,
    unsafe: bool = False,
    measure: bool = True,
    timeout: float | None = None,
) -> list[Fixed]:
    """Repair what was found, in place, one finding after the other; freezes come last.

    The losses of some batches in training and in evaluation are taken before and after each fix. A fix after which the
    loss of evaluation is higher by more than its noise over batches is taken back, and so is one that fails, or after
    which a loss can no longer be taken, a training step no longer runs, or a second model that was built as
    the model is (a target, averaged weights) no longer has its parameters. The losses of a network as it was made are
    told and decide nothing.

    Args:
        case: The set-up that was checked.
        findings: What to repair.
        unsafe: Whether to make fixes that change what the network computes or how it trains.
        measure: Whether losses are taken, and a step is tried; without that a fix that harms stands.
        timeout: Seconds after which a fix is given up and taken back; without end if None.

    Returns:
        For each finding what was done, with the losses before and after, or why nothing was.

    Example:
        >>> for made in fix(case, check(case), unsafe=True):
        ...     print(made)

    Raises:
        UsageError: It is given no case, or what are no findings.
    """
    if not isinstance(case, Case):
        raise UsageError(f"fix takes the ns.Case that was checked, not {shown(case)}: fix(Case(model, ...), findings)")
    if not isinstance(findings, Finding) and not isinstance(findings, Iterable):
        raise UsageError(f"fix takes findings, as check returns them, not {shown(findings)}")
    wanted = [findings] if isinstance(findings, Finding) else list(findings)
    for finding in wanted:
        if not isinstance(finding, Finding):
            raise UsageError(f"fix takes findings, as check returns them, not {shown(finding)}")
    failures = Failures()
    fixer = Fixer(case, TimeLimit(timeout), failures.note, measure=measure)
    made = {
        id(finding): fixer.fix(finding, unsafe=unsafe)
        for finding in in_order({id(each): each for each in wanted}.values())
    }
    failures.warn("could not be repaired, and nothing of that was left")
    return [made[id(finding)] for finding in wanted]


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings in the order in which they are repaired: statistics are taken anew before norms are frozen."""
    return sorted(findings, key=lambda finding: get(finding.code).HOLDS)


class Fixer:
    """Repairs the findings of a set-up one by one, as ``fix`` does.

    Args:
        case: The set-up.
        limit: Of the time that each fix may take.
        note: Called with the code of a finding and what its fix raised; returns that in words.
        measure: As of ``fix``.
    """

    def __init__(
        self, case: Case, limit: TimeLimit, note: Callable[[str, Exception], str], *, measure: bool = True
    ) -> None:
        self._case, self._limit, self._note, self._measure = case, limit, note, measure
        self._known: effect.Losses | None = None

    def fix(self, finding: Finding, *, unsafe: bool) -> Fixed:
        """Repair one finding; what is not made leaves nothing.

        Args:
            finding: The finding.
            unsafe: As of ``fix``.
        """
        if not finding.fixable:
            return Fixed(finding, why_not=f"no mechanical fix: {finding.fix or 'see its page'}")
        if not (get(finding.code).SAFE or unsafe):
            return Fixed(finding, why_not="the fix is unsafe: it changes what the network computes or learns")
        standing = None
        try:
            with self._limit.waiting("the fix"):
                standing = effect.Before(self._case)
                before, untrained = self._losses(), self._measure and self._untrained
                pairing = Pairing(self._case) if self._measure else None
                done = get(finding.code).repair(self._case, finding)
                after = self._losses(anew=True) if done else before
                unfit = pairing.lost() if pairing is not None and done else ""
        except BaseException as error:
            if standing is not None:
                standing.restore()
            if not isinstance(error, Exception | SystemExit | OverTimeError):
                raise
            return Fixed(finding, why_not=_why_not(finding, error, self._note))
        if not done:
            return Fixed(finding, why_not="there was nothing left to change")
        told = effect.told(before, after)
        harm = effect.lost(before, after) or unfit or ("" if untrained else effect.risen(before, after))
        if not harm:
            return Fixed(finding, done, losses=told)
        standing.restore()
        self._known = before
        return Fixed(finding, why_not=f"{done}, and took it back: {harm}", losses=told)

    def _losses(self, *, anew: bool = False) -> effect.Losses:
        if not self._measure:
            return {}
        if self._known is None or anew:
            self._known = self._taking.losses()
        return self._known

    @cached_property
    def _taking(self) -> effect.Measure:
        return effect.Measure(self._case)

    @cached_property
    def _untrained(self) -> bool:
        """Whether the network is as it was made, before the first fix: its loss is that of chance."""
        try:
            return Evidence(self._case).untrained
        except NormscopeError:
            return False


def _why_not(finding: Finding, error: BaseException, note: Callable[[str, Exception], Any]) -> str:
    if isinstance(error, RefusedFixError):
        return str(error)
    if isinstance(error, NormscopeError):
        return f"the fix failed: {error}"
    if isinstance(error, OverTimeError):
        return f"{error}, and was taken back"
    if isinstance(error, SystemExit):
        return f"the fix failed: SystemExit: {error.code}"
    assert isinstance(error, Exception)
    return f"the fix failed: {note(finding.code, error)}"
