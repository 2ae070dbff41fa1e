"""What every study is: a claim, cells that differ in one thing, and contrasts fixed before the run."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import GeneratorType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from normscope._errors import UsageError
from normscope.records import Outcome, Premise, Verdict
from normscope.stats import Decision
from normscope.studies import figures
from normscope.studies.contrast import Contrast
from normscope.studies.evidence import Evidence
from normscope.studies.experiment import AbstractExperiment, Progress
from normscope.studies.quantity import Quantity
from normscope.studies.runs import run
from normscope.studies.wording import Wording
from normscope.usercode import defined_at

if TYPE_CHECKING:
    from normscope.plots import Figure, Table


_NO_CONTRAST = "contrasts() yields no contrast, so there is nothing to judge"
#: A run that diverged leaves infinities: what is computed of them is no number, and said to be none, without a warning.
_NO_NUMBER: dict[str, Any] = {"over": "ignore", "invalid": "ignore", "divide": "ignore"}
#: Words for networks by their name in the settings, and for data by their name.
NETWORK_WORDS = {
    "mlp": "dense networks",
    "vgg-a": "a VGG network",
    "resnet": "a residual network",
    "cnn": "a small CNN",
}
DATA_WORDS = {"digits": "8x8 digits", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


class AbstractStudy(AbstractExperiment):
    """One claim about batch normalization, put to a test. A positive effect speaks for the claim.

    A study is found by its file being in the folder ``claims``. Its docstring is its page. It yields contrasts: the
    headline is the one nearest to what the source states, the others are also tried. Sentences, figures and tables come
    from the contrasts unless the study makes its own.

    Attributes:
        CONDITIONS: Words for the values of points, ``{}`` for the value, by the name of the value.
        VARIES: What varies between conditions, in words that complete "depends on the ...", by the name of the value.
        NETWORKS: The kind of networks that the numbers are about, where the settings do not say it.
    """

    CONDITIONS: ClassVar[Mapping[str, str]] = {}
    VARIES: ClassVar[Mapping[str, str]] = {}
    NETWORKS: ClassVar[str] = ""

    def contrasts(self, evidence: Evidence) -> Iterable[Contrast]:
        """Yield what is judged: the contrast nearest to what the source states first, then what else was tried.

        Args:
            evidence: Gives the settings, and own best values of points.
        """
        raise NotImplementedError(f"{type(self).__name__} must yield its contrasts, or judge by itself")

    def judge(self, evidence: Evidence) -> Verdict:
        """Return the verdict of the headline contrast, with the other contrasts as its parts.

        Raises:
            UsageError: The study yields no contrast, two headlines, or a margin without a reason.
        """
        first, *others = self.ordered(evidence)
        primary = self.verdict_of(first, evidence, primary=True)
        return replace(primary, parts=tuple(self.verdict_of(other, evidence) for other in others))

    @np.errstate(**_NO_NUMBER)
    def ordered(self, evidence: Evidence) -> list[Contrast]:
        """Return the contrasts, the headline first.

        Raises:
            UsageError: As ``judge``.
        """
        kept: list[Contrast] = []
        found = self.contrasts(evidence)
        for each in found or ():
            if wrong := self._wrong(each, kept, evidence.settings):
                self._refuse(found, wrong)
            kept.append(each)
        if not kept:
            self._refuse(found, _NO_CONTRAST)
        head = next((index for index, each in enumerate(kept) if each.headline), 0)
        return [kept[head], *kept[:head], *kept[head + 1 :]]

    def _wrong(self, contrast: object, before: Sequence[Contrast], settings: Mapping[str, Any]) -> str:
        """Say what is wrong with what ``contrasts`` yields after others; empty if nothing is."""
        if not isinstance(contrast, Contrast):
            return f"contrasts() yields a {type(contrast).__name__}: yield Contrast(...)"
        if contrast.headline and any(each.headline for each in before):
            return "a second contrast says headline=True: one contrast decides a claim"
        if contrast.exact_within is None and not (contrast.margin_reason or self.MARGIN_REASON):
            return (
                "a margin without a reason: say in MARGIN_REASON, or in margin_reason of the contrast, why a smaller "
                "effect does not matter"
            )
        if self.SOURCE_PATH and not defined_at(contrast.quantity.read):  # a reader of the user's own may take any name
            arms = list(dict.fromkeys(arm for arm, _ in self.grid(settings)))
            sides = [
                side["arm"] if isinstance(side, Mapping) and "arm" in side else side
                for side in (contrast.first, contrast.second)
            ]
            strange = next((side for side in sides if isinstance(side, str) and side not in arms), None)
            if strange is not None:
                return f"no cell has the arm {strange!r}: the arms are {', '.join(map(repr, arms))}"
        return ""

    def _refuse(self, found: Iterable[Any] | None, wrong: str) -> NoReturn:
        """Raise a UsageError, from the line that yielded last where there is one, so that the line can be named."""
        error = UsageError(f"{self.CODE}: {wrong}")
        if isinstance(found, GeneratorType) and inspect.getgeneratorstate(found) != inspect.GEN_CLOSED:
            found.throw(error)
        place = defined_at(self.contrasts)
        raise UsageError(f"{error} ({place})") if place else error

    def foresee(self, settings: Mapping[str, Any]) -> None:
        """Refuse contrasts of a user's own study that are wrong without any record.

        What needs records to be yielded, or to fail, is found when the study is judged.
        """
        import polars as pl

        columns = {key for _, point in self.grid(settings) for key in point}
        text = dict.fromkeys(("arm", "probe", "site", "name", "unit"), pl.String)
        numbers = {"seed": pl.Int64, "step": pl.Int64, "value": pl.Float64}
        nothing = pl.DataFrame(schema=text | numbers | dict.fromkeys(columns, pl.Float64))
        try:
            self.ordered(Evidence(nothing, settings, ()))
        except UsageError as error:
            if _NO_CONTRAST not in str(error):
                raise
        except Exception:  # the study reads records on the way
            return

    @np.errstate(**_NO_NUMBER)
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
        """Say which networks and data the numbers are about: ``"dense networks, 8x8 digits"``."""
        network = evidence.settings.get("network")
        name = str(network.get("name", "")) if isinstance(network, Mapping) else ""
        networks = self.NETWORKS or NETWORK_WORDS.get(name, name)
        return ", ".join(word for word in (networks, DATA_WORDS.get(evidence.data, Path(evidence.data).stem)) if word)

    @property
    def wording(self) -> Wording:
        """Words for the arms and conditions."""
        return Wording({name: str(arm) for name, arm in self.ARMS.items()}, self.CONDITIONS, self.VARIES)

    def figures(self, evidence: Evidence) -> Sequence["Figure"]:
        """Draw what answers the claim: by default the quantity of the first contrast over steps."""
        headline = self.ordered(evidence)[0]
        return [self.figure(headline, evidence)] if any(headline.quantity.record) else []

    def tables(self, evidence: Evidence) -> Sequence["Table"]:
        """Tabulate the numbers behind the figures: by default a row for every contrast."""
        rows = [
            (contrast, contrast.read(evidence), self.verdict_of(contrast, evidence).outcome)
            for contrast in self.ordered(evidence)
        ]
        return [figures.contrasts_table(rows, self.wording, len(evidence.seeds))]

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
