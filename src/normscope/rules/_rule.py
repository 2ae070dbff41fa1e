"""What every rule is: it examines evidence, names one defect, and knows how to repair it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from normscope._unit import Unit
from normscope.evidence import Case, Evidence, Finding, Severity, examples


class AbstractRule(Unit, ABC):
    """One defect of normalization. A rule is found by its file being in this folder.

    Attributes:
        SLUG: Its name, after what it finds.
        SEVERITY: How bad its findings are, where a finding does not say otherwise.
        SAFE: Whether its fix leaves function and training as they were, or strictly repairs them.
        BUFFERS_ONLY: Whether it can judge from a checkpoint's buffers alone: then ``examine_buffers`` is written.
        NEEDS: What it judges by besides the model, its loss and batches: ``"averaged"``, ``"evaluation"``,
            ``"exported"`` or ``"replicas"`` of a case; ``"loop"`` is the user's own training step, ``"gradient"`` what
            flows back in it.
        HOLDS: Whether its fix holds running statistics where they are: it is made after the fixes of other rules, which
            may take them anew.
        KEEPS: Which outputs of the model its fix leaves as they were, to rounding: ``"training"``, ``"evaluation"``.
        SICK: Set-ups in which it must find the defect, in three different networks at least: at every batch norm, or
            at the places that an ``examples.Planted`` says.
        WELL: Similar set-ups without the defect, in which it must find nothing.
        NEAR: Pairs of set-ups on the two sides of each bound, as near to it as they can be made.
    """

    HEADINGS = ("Finds", "Why it hurts", "Fix")
    SLUG: ClassVar[str]
    SEVERITY: ClassVar[Severity]
    SAFE: ClassVar[bool] = False
    BUFFERS_ONLY: ClassVar[bool] = False
    NEEDS: ClassVar[tuple[str, ...]] = ()
    HOLDS: ClassVar[bool] = False
    KEEPS: ClassVar[tuple[str, ...]] = ()
    SICK: ClassVar[Sequence[Callable[[], Case]]] = ()
    WELL: ClassVar[Sequence[Callable[[], Case]]] = ()
    NEAR: ClassVar[Sequence[examples.Near]] = ()

    @abstractmethod
    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Yield what is found: one finding a cause, with all its places."""

    def examine_buffers(self, norms: Mapping[str, Mapping[str, Any]]) -> Iterable[Finding]:
        """Yield what a checkpoint shows. Written by rules with ``BUFFERS_ONLY``.

        Args:
            norms: By qualified name of a norm the tensors that a state dict holds of it (``running_mean``, ...).
        """
        return ()

    def repair(self, case: Case, finding: Finding) -> str:
        """Repair the defect in place and say what was done. Written by rules that have a mechanical fix.

        Raises:
            NotImplementedError: The rule has none.
        """
        raise NotImplementedError

    def fixable(self) -> bool:
        """Whether ``repair`` is written."""
        return type(self).repair is not AbstractRule.repair

    def finding(
        self,
        message: str,
        places: Sequence[str] = ("",),
        *,
        quantity: str = "",
        measured: float | None = None,
        bound: float | None = None,
        cost: str = "",
        fix: str = "",
        severity: Severity | None = None,
        details: Mapping[str, float] | None = None,
        fixable: bool | None = None,
    ) -> Finding:
        """Make a finding of this rule."""
        return Finding(
            code=self.CODE,
            slug=self.SLUG,
            severity=severity or self.SEVERITY,
            message=message,
            places=tuple(places),
            quantity=quantity,
            measured=None if measured is None else float(measured),
            bound=bound,
            cost=cost,
            fix=fix,
            safe=self.SAFE,
            fixable=self.fixable() if fixable is None else fixable,
            details=dict(details or {}),
        )
