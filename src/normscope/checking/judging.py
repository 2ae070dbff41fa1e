"""One rule after another: what fails in one keeps none of the others from being judged."""

from collections.abc import Callable, Iterable
from pathlib import Path
from traceback import extract_tb
from typing import Any

from normscope._errors import NonFiniteError, NormscopeError
from normscope.checking.findings import RuleWarning
from normscope.checking.limit import OverTimeError, TimeLimit
from normscope.evidence.sandbox import NoBatchError
from normscope.records import Finding
from normscope.usercode import described, place_of, warn_user

OnFailure = Callable[[str, Exception], None]


class Judging:
    """Runs rules, and keeps what of them could not be judged, and why.

    Args:
        limit: Of the time that each may take.
        on_failure: Called with the code of a rule that raised what no rule should, and what it raised.
        basis: Raises where the set-up itself does not run, so that there is nothing to judge.

    Attributes:
        unmeasured: Codes, and why their evidence could not be had.
        not_run: Codes, and what they waited for in vain.
    """

    def __init__(
        self, limit: TimeLimit, on_failure: OnFailure | None = None, basis: Callable[[], Any] | None = None
    ) -> None:
        self._limit, self._basis = limit, basis
        self._failures = Failures(on_failure)
        self.unmeasured: list[tuple[str, str]] = []
        self.not_run: list[tuple[str, str]] = []

    def findings(self, code: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
        """Return what a rule finds; nothing where it cannot be judged.

        Raises:
            NormscopeError: There is nothing to judge.
        """
        try:
            with self._limit.waiting("passes of its own"):
                return self._found(code, look)
        except OverTimeError as error:
            self.not_run.append((code, str(error)))
        except NormscopeError:
            raise
        except Exception as error:
            self.unmeasured.append((code, self._failures.note(code, error)))
        return []

    def _found(self, code: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
        try:
            return list(look())
        except NonFiniteError as error:  # a finding of NS103's: the others cannot measure, and it must be heard
            self.unmeasured.append((code, str(error)))
        except NormscopeError as error:
            if isinstance(error, NoBatchError) and error.loader == NoBatchError.loader:
                raise
            if self._basis is not None:
                self._basis()
            self.unmeasured.append((code, str(error)))
        return []

    def warn(self) -> None:
        """Warn of what failed, unless somebody listens."""
        self._failures.warn("could not be judged; the others were")


class Failures:
    """Exceptions of this package's own code, or of the user's where none was expected.

    Args:
        on_failure: Called with the code of each rule and its exception. Left out, a warning tells of them.
    """

    def __init__(self, on_failure: OnFailure | None = None) -> None:
        self._on_failure = on_failure
        self._noted: list[tuple[str, str, Exception]] = []

    def note(self, code: str, error: Exception) -> str:
        """Keep an exception, and return it in words, with its place."""
        place = place_of(error) or _own_place(error)
        words = described(error) + (f" ({place})" if place else "")
        if self._on_failure is not None:
            self._on_failure(code, error)
        else:
            self._noted.append((code, words, error))
        return words

    def warn(self, outcome: str) -> None:
        """Warn of what was kept, if anything."""
        if not self._noted:
            return
        told = "; ".join(f"{code}: {words}" for code, words, _ in self._noted)
        try:
            warn_user(f"{', '.join(code for code, *_ in self._noted)} {outcome}: {told}", RuleWarning)
        except RuleWarning as warning:  # where warnings are errors, as in tests, the first exception is its cause
            raise warning from self._noted[0][2]


def _own_place(error: Exception) -> str:
    frames = extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
