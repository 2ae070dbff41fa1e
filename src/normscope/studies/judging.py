"""How contrasts get their words: premises first, then the rule; and how what they rest on is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from normscope._unit import Unit
from normscope.records import Outcome, Premise, Verdict
from normscope.stats import Decision
from normscope.studies import figures
from normscope.studies.contrast import Contrast
from normscope.studies.evidence import Evidence
from normscope.studies.quantity import Quantity
from normscope.studies.wording import Wording

if TYPE_CHECKING:
    from normscope.plots import Figure, Table

#: A run that diverged leaves infinities: what is computed of them is no number, and said to be none, without a warning.
NO_NUMBER: dict[str, Any] = {"over": "ignore", "invalid": "ignore", "divide": "ignore"}


class AbstractJudge(Unit):
    """A unit that judges contrasts and draws the records behind them.

    Attributes:
        CLAIM: The claim in a sentence; that of a contrast that has none of its own.
        ENDPOINT: What the headline measures, in words, where its contrast does not say it.
        MARGIN: Smallest effect that matters, on the scale of the headline's effect.
        MARGIN_REASON: Why a smaller effect does not matter, in a line.
        ARMS: The arms, by their name in the records, in words (or with a ``str`` that is).
        CONDITIONS: Words for the values of points, ``{}`` for the value, by the name of the value.
        VARIES: What varies between conditions, in words that complete "depends on the ...", by the name of the value.
    """

    CLAIM: ClassVar[str]
    ENDPOINT: ClassVar[str] = ""
    MARGIN: ClassVar[float]
    MARGIN_REASON: ClassVar[str] = ""
    ARMS: ClassVar[Mapping[str, Any]] = {}
    CONDITIONS: ClassVar[Mapping[str, str]] = {}
    VARIES: ClassVar[Mapping[str, str]] = {}

    @np.errstate(**NO_NUMBER)
    def verdict_of(self, contrast: Contrast, evidence: Evidence, *, primary: bool = False) -> Verdict:
        """Judge one contrast.

        Args:
            contrast: What to judge.
            evidence: The records.
            primary: Whether it is the headline, whose endpoint is then that of the study.
        """
        reading, words = contrast.read(evidence), self.wording
        decision = reading.judge(self.MARGIN)
        premises = tuple(self._premise(each, evidence) for each in contrast.premises)
        if failed := [premise.words for premise in premises if not premise.met]:
            decision = Decision(Outcome.NOT_MEASURABLE, None, f"a premise is not met: {'; '.join(failed)}")
        own = self.ENDPOINT if primary and not contrast.endpoint else ""
        return Verdict(
            study=self.CODE,
            claim=contrast.claim or self.CLAIM,
            outcome=decision.outcome,
            endpoint=words.endpoint(replace(contrast, endpoint=own) if own else contrast),
            effect=reading.effect,
            margin=reading.margin(self.MARGIN),
            reason=words.reason(reading),
            sources=self.SOURCES,
            p_value=decision.p_value,
            primary=primary,
            name=contrast.name,
            margin_reason=contrast.margin_reason or ("" if contrast.exact_within is not None else self.MARGIN_REASON),
            premises=premises,
            conditions=words.conditions_of(contrast),
            finding=words.finding(reading),
            amount=words.amount(reading),
            why=decision.why,
            here=self.here(evidence),
        )

    def _premise(self, contrast: Contrast, evidence: Evidence) -> Premise:
        """Judge what must be the case; a premise of a premise counts too."""
        found = self.verdict_of(contrast, evidence)
        seen = found.finding if found.outcome is not Outcome.NOT_MEASURABLE else found.why
        unclear = ", which is unclear" if found.outcome is Outcome.UNCLEAR else ""
        return Premise(f"{found.claim.rstrip('.')} (seen: {seen}{unclear})", found.outcome.in_favour)

    def here(self, evidence: Evidence) -> str:
        """Say which networks and data the numbers are about; empty if that need not be said."""
        return ""

    @property
    def wording(self) -> Wording:
        """Words for the arms and conditions."""
        return Wording({name: str(arm) for name, arm in self.ARMS.items()}, self.CONDITIONS, self.VARIES)

    def figure(self, contrast: Contrast, evidence: Evidence, **changes: Any) -> "Figure":
        """Draw the records of a contrast's quantity over steps, a line an arm, each side under its own condition.

        Args:
            contrast: What to draw; its quantity has a ``record``.
            evidence: The records.
            changes: Arguments of ``plots.curves`` in place of the defaults.
        """
        return figures.contrast_figure(contrast, evidence, self.wording, **changes)

    def curves(
        self,
        evidence: Evidence,
        name: str | Sequence[str],
        *,
        probe: str = "training",
        at: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> "Figure":
        """Draw recorded quantities over steps, a line an arm; titles, axes, words and caption have defaults.

        Args:
            evidence: The records.
            name: Name of the records, or several names.
            probe: Their probe.
            at: Which of them: ``arm`` (several, if not all), ``site``, ``before``, and values of the point.
            changes: Arguments of ``plots.curves`` in place of the defaults.
        """
        return figures.record_figure(evidence, name, self.wording, probe=probe, at=at or {}, **changes)

    def grid_table(
        self,
        quantities: Quantity | Sequence[Quantity],
        evidence: Evidence,
        *,
        rows: Mapping[str, Sequence[Any]],
        columns: Mapping[str, Sequence[Any]] | None = None,
        at: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> "Table":
        """Tabulate quantities over the grid: a row for every combination of ``rows``, a column for every other.

        Args:
            quantities: What stands in the cells.
            evidence: The records.
            rows: Names of the point's values (or ``"arm"``) and the values; each name is a first column.
            columns: As ``rows``, across, and then each quantity has a row of its own; None for a column a quantity.
            at: The condition of the whole table.
            changes: ``title``, ``caption``, ``heads`` (of the first columns) and ``labels`` (words for values).
        """
        listed = [quantities] if isinstance(quantities, Quantity) else list(quantities)
        where: dict[str, Any] = {"rows": rows, "columns": columns or {}, "at": at or {}}
        return figures.grid_table(listed, evidence, self.wording, **where, **changes)
