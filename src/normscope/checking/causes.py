"""Findings of many readings of one training: each cause is kept once."""

from dataclasses import replace

from normscope.evidence.case import Case
from normscope.records import Finding


class Causes:
    """The findings of a training so far. A cause is a code with the places where it shows.

    Attributes:
        ignored: Findings at places that the user has excepted, each with the user's reason; one a code and places.
    """

    def __init__(self) -> None:
        self._findings: list[Finding] = []
        self.ignored: dict[tuple[str, tuple[str, ...]], tuple[Finding, str]] = {}

    def add(self, finding: Finding, step: int, case: Case) -> bool:
        """Take a finding of the reading at ``step``, and return whether its cause is new.

        A finding that shares its code and a place with earlier ones is joined with them; its details count the
        readings and name the first and the last step. An excepted finding is never new.
        """
        reason = case.ignored(finding.code, finding.places)
        if reason:
            self.ignored.setdefault((finding.code, finding.places), (finding, reason))
            return False
        earlier = [old for old in self._findings if old.code == finding.code and set(old.places) & set(finding.places)]
        places = tuple(dict.fromkeys(place for joined in (*earlier, finding) for place in joined.places))
        steps = {
            "first_step": min((old.details["first_step"] for old in earlier), default=float(step)),
            "last_step": float(step),
            "readings": 1 + max((old.details["readings"] for old in earlier), default=0.0),
        }
        self._findings = [old for old in self._findings if old not in earlier]
        self._findings.append(replace(finding, places=places, details={**finding.details, **steps}))
        return not earlier

    def ordered(self) -> tuple[Finding, ...]:
        """Return one finding a cause: the worst first, then by code and first step."""

        def rank(finding: Finding) -> tuple[int, str, float]:
            return finding.severity.rank, finding.code, finding.details["first_step"]

        return tuple(sorted(self._findings, key=rank))
