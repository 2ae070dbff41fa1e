"""What every study is: a claim, cells that differ in one thing, and contrasts fixed before the run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from normscope.records import Estimate, Outcome, Verdict
from normscope.studies import figures
from normscope.studies.contrast import AllOf, Contrast, conjunction
from normscope.studies.evidence import Evidence
from normscope.studies.experiment import AbstractExperiment, Progress
from normscope.studies.quantity import Quantity
from normscope.studies.runs import run
from normscope.studies.wording import Wording

if TYPE_CHECKING:
    from normscope.plots import Figure, Table


class AbstractStudy(AbstractExperiment):
    """One claim about batch normalization, put to a test. A positive effect speaks for the claim.

    A study is found by its file being in the folder ``claims``. Its docstring is its page. It yields contrasts: the
    first decides the claim, the others qualify it. Sentences, figures and tables come from the contrasts unless the
    study makes its own.

    Attributes:
        CONDITIONS: Words for the values of points, ``{}`` for the value, by the name of the value.
    """

    CONDITIONS: ClassVar[Mapping[str, str]] = {}

    def contrasts(self, evidence: Evidence) -> Iterable[Contrast | AllOf | Verdict]:
        """Yield what is judged: the primary endpoint first, then what qualifies it.

        Args:
            evidence: Gives the settings, and own best values of points.
        """
        raise NotImplementedError(f"{type(self).__name__} must yield its contrasts, or judge by itself")

    def judge(self, evidence: Evidence) -> Verdict:
        """Return the verdict of the first contrast, with its conditions and the other contrasts as its parts."""
        first, *others = self.contrasts(evidence)
        primary = self.verdict_of(first, evidence, primary=True)
        judged = [self.verdict_of(other, evidence) for other in others]
        beside = [
            verdict.reason
            for other, verdict in zip(others, judged, strict=True)
            if isinstance(other, Contrast) and other.in_headline
        ]
        reason = " ".join([primary.reason, *beside])
        return replace(primary, reason=reason, primary=True, parts=(*primary.parts, *judged))

    def verdict_of(self, judged: Contrast | AllOf | Verdict, evidence: Evidence, *, primary: bool = False) -> Verdict:
        """Judge one contrast, or several that must all hold; a verdict passes through.

        Args:
            judged: What to judge.
            evidence: The records.
            primary: Whether it decides the study, whose endpoint it then has.
        """
        if isinstance(judged, Verdict):
            return judged
        if isinstance(judged, AllOf):
            return self._all_of(judged, evidence, primary=primary)
        reading, words = judged.read(evidence), self.wording
        outcome, p_value = reading.judge(self.MARGIN)
        said = words.reason(reading)
        for premise in judged.premises:
            found = self.verdict_of(premise, evidence)
            if outcome is Outcome.SUPPORTED and found.outcome is not Outcome.SUPPORTED:
                outcome, said = Outcome.INCONCLUSIVE, f"A premise is not met: {found.reason} {said}"
        own = self.ENDPOINT if primary and not judged.endpoint else ""
        return self.verdict(
            outcome,
            reading.effect,
            reason=said,
            p_value=p_value,
            claim=judged.claim,
            endpoint=words.endpoint(replace(judged, endpoint=own) if own else judged),
            margin=reading.margin(self.MARGIN),
            primary=primary,
        )

    def _all_of(self, judged: AllOf, evidence: Evidence, *, primary: bool) -> Verdict:
        parts = [self.verdict_of(part, evidence) for part in judged.parts]
        outcome, p_value, decisive = conjunction(parts, 1 - evidence.level)
        found = self.verdict(
            outcome,
            decisive.effect,
            reason=judged.reason if isinstance(judged.reason, str) else "",
            p_value=p_value,
            claim=judged.claim,
            endpoint=judged.endpoint,
            margin=decisive.margin,
            primary=primary,
            parts=parts,
        )
        if not isinstance(judged.reason, str):
            return replace(found, reason=judged.reason(found))
        return found if judged.reason else replace(found, reason=" ".join(part.reason for part in parts))

    @property
    def wording(self) -> Wording:
        """Words for the arms and conditions."""
        return Wording({name: str(arm) for name, arm in self.ARMS.items()}, self.CONDITIONS)

    def figures(self, evidence: Evidence) -> Sequence["Figure"]:
        """Draw what answers the claim: by default the quantity of the first contrast over steps."""
        drawn = [
            self.figure(contrast, evidence) for contrast in self.leading(evidence) if any(contrast.quantity.record)
        ]
        return list({figure.slug: figure for figure in drawn}.values())

    def tables(self, evidence: Evidence) -> Sequence["Table"]:
        """Tabulate the numbers behind the figures: by default a row for every contrast."""
        rows = [(contrast, contrast.read(evidence)) for contrast in _flat(self.contrasts(evidence))]
        return [figures.contrasts_table(rows, self.wording, self.MARGIN, len(evidence.seeds))]

    def leading(self, evidence: Evidence) -> list[Contrast]:
        """Return the contrasts that decide the claim: the first, or all conditions of the first."""
        return _flat(list(self.contrasts(evidence))[:1])

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

    def verdict(
        self,
        outcome: Outcome,
        effect: Estimate,
        *,
        reason: str,
        p_value: float | None,
        claim: str = "",
        endpoint: str = "",
        margin: float | None = None,
        primary: bool = False,
        parts: Sequence[Verdict] = (),
    ) -> Verdict:
        """Make a verdict of this study; what is left out is the study's own claim, endpoint and margin."""
        return Verdict(
            study=self.CODE,
            claim=claim or self.CLAIM,
            outcome=outcome,
            endpoint=endpoint or self.ENDPOINT,
            effect=effect,
            margin=self.MARGIN if margin is None else margin,
            reason=reason,
            sources=self.SOURCES,
            p_value=p_value,
            primary=primary,
            parts=tuple(parts),
        )

    def part(
        self,
        evidence: Evidence,
        values: ArrayLike,
        *,
        endpoint: str,
        reason: str | Callable[[Estimate], str],
        claim: str = "",
        scale: str = "difference",
        margin: float | None = None,
        refuted_below: float | None = None,
        primary: bool = False,
    ) -> Verdict:
        """Judge one number a seed that no contrast of two sides gives.

        Args:
            evidence: Gives the level.
            values: One number per seed, positive in the direction of the claim; seeds whose number is not finite are
                left out, and the reason says so.
            endpoint: What was measured, in words.
            reason: A sentence, or what makes one of the estimate.
            claim: The claim; the study's own if left out.
            scale: What the numbers are: ``"difference"``, ``"log-ratio"`` or ``"value"``.
            margin: Smallest effect of interest; the study's own if left out.
            refuted_below: Where refutation begins, if not at the margin.
            primary: Whether this is the endpoint that decides the claim.
        """
        numbers = np.asarray(values, dtype=np.float64)
        contrast = Contrast(
            Quantity(endpoint, lambda _: numbers),
            claim=claim,
            endpoint=endpoint,
            reason=reason if isinstance(reason, str) else lambda reading: reason(reading.effect),
            scale=scale,
            margin=margin,
            refuted_below=refuted_below,
        )
        return self.verdict_of(contrast, evidence, primary=primary)

    def run(
        self,
        *,
        out: str | Path = "runs",
        seeds: int = 10,
        preset: str = "quick",
        data: str = "digits",
        device: str = "cpu",
        workers: int | None = None,
        extend: bool = False,
        progress: Progress | None = None,
    ) -> Verdict:
        """Run the study, or what of it is not yet complete, and judge it: see ``normscope.studies.runs.run``."""
        return run(
            self,
            out=out,
            seeds=seeds,
            preset=preset,
            data=data,
            device=device,
            workers=workers,
            extend=extend,
            progress=progress,
        )


def _flat(found: Iterable[Contrast | AllOf | Verdict]) -> list[Contrast]:
    """Return contrasts, with the parts of those that must all hold; verdicts have no numbers to show."""
    contrasts: list[Contrast] = []
    for item in found:
        if isinstance(item, Contrast):
            contrasts.append(item)
        elif isinstance(item, AllOf):
            contrasts += _flat(item.parts)
    return contrasts
