"""What every study is: a claim, cells that differ in one thing, and contrasts fixed before the run."""

import inspect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import GeneratorType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from normscope._errors import UsageError
from normscope.records import Verdict
from normscope.running import Executor, Shard
from normscope.studies import figures
from normscope.studies.contrast import Contrast
from normscope.studies.evidence import Evidence
from normscope.studies.experiment import AbstractExperiment, Progress
from normscope.studies.judging import NO_NUMBER, AbstractJudge
from normscope.studies.runs import run
from normscope.usercode import defined_at

if TYPE_CHECKING:
    from normscope.plots import Figure, Table


#: A study that yields more contrasts than these does not end.
MOST_CONTRASTS = 10_000
_NO_CONTRAST = "contrasts() yields no contrast, so there is nothing to judge"
#: Words for networks by their name in the settings, and for data by their name.
NETWORK_WORDS = {
    "mlp": "dense networks",
    "vgg-a": "a VGG network",
    "resnet": "a residual network",
    "cnn": "a small CNN",
}
DATA_WORDS = {
    "digits": "8x8 digits",
    "text": "characters of documentation",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
}


class _NoRecords(Evidence):
    """Evidence without a record, which remembers whether a record was asked for."""

    asked: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Look at nothing: there is no seed that could stand twice."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__") and name not in ("settings", "level", "data", "asked"):
            object.__setattr__(self, "asked", True)
        return super().__getattribute__(name)


class AbstractStudy(AbstractJudge, AbstractExperiment):
    """One claim about batch normalization, put to a test. A positive effect speaks for the claim.

    A study is found by its file being in the folder ``claims``. Its docstring is its page. It yields contrasts: the
    headline is the one nearest to what the source states, the others are also tried. Sentences, figures and tables come
    from the contrasts unless the study makes its own.

    Attributes:
        NETWORKS: The kind of networks that the numbers are about, where the settings do not say it.
    """

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

    @np.errstate(**NO_NUMBER)
    def ordered(self, evidence: Evidence) -> list[Contrast]:
        """Return the contrasts, the headline first.

        Raises:
            UsageError: As ``judge``.
        """
        kept: list[Contrast] = []
        found = self.contrasts(evidence)
        for each in itertools.islice(found or (), MOST_CONTRASTS + 1):
            if wrong := self._wrong(each, kept, evidence.settings):
                self._refuse(found, wrong)
            kept.append(each)
        if not kept:
            self._refuse(found, _NO_CONTRAST)
        if len(kept) > MOST_CONTRASTS:
            self._refuse(found, f"contrasts() yields more than {MOST_CONTRASTS} contrasts: does it end?")
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
            arms = list(dict.fromkeys(arm for arm, _ in self.points(settings)))
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

        columns = {key for _, point in self.points(settings) for key in point}
        text = dict.fromkeys(("arm", "probe", "site", "name", "unit"), pl.String)
        numbers = {"seed": pl.Int64, "step": pl.Int64, "value": pl.Float64}
        nothing = pl.DataFrame(schema=text | numbers | dict.fromkeys(columns, pl.Float64))
        if type(self).contrasts is AbstractStudy.contrasts:  # it judges by itself
            return
        evidence = _NoRecords(nothing, settings, ())
        try:
            self.ordered(evidence)
        except UsageError as error:
            if _NO_CONTRAST not in str(error) or not evidence.asked:
                raise
        except Exception:
            if not evidence.asked:
                raise

    def here(self, evidence: Evidence) -> str:
        """Say which networks and data the numbers are about: ``"dense networks, 8x8 digits"``."""
        network = evidence.settings.get("network")
        name = str(network.get("name", "")) if isinstance(network, Mapping) else ""
        networks = self.NETWORKS or NETWORK_WORDS.get(name, name)
        return ", ".join(word for word in (networks, DATA_WORDS.get(evidence.data, Path(evidence.data).stem)) if word)

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

    def run(
        self,
        *,
        out: str | Path = "runs",
        seeds: int = 10,
        preset: str = "quick",
        data: str | None = None,
        device: str = "cpu",
        workers: int | None = None,
        executor: str | Executor | None = None,
        shard: str | Shard | None = None,
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
            executor=executor,
            shard=shard,
            extend=extend,
            progress=progress,
        )
