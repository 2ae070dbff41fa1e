"""Several studies run into one folder: each is looked at once, and again where all together leave it open."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normscope._errors import NormscopeError
from normscope.records import Outcome, Verdict, standing
from normscope.running import IncompleteRunError
from normscope.stats import adjust
from normscope.studies import runs
from normscope.studies.experiment import Progress
from normscope.studies.study import AbstractStudy

_SEEDS = 10  # of a run that says no number: the default of `runs.run`


@dataclass(slots=True)
class Looks:
    """Studies under way: what each came to, and how long it took.

    A run that may be extended takes a second look at the studies that are unclear once all are judged together.
    """

    out: Path
    progress: Callable[[str, int, int], None] | None
    ended: Callable[[str, str, float], None] | None
    settings: dict[str, Any]
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    incomplete: list[IncompleteRunError] = field(default_factory=list)

    def at(self, chosen: Sequence[AbstractStudy]) -> None:
        """Take the first look at studies, and the second where it is wanted and the first leaves them open.

        Raises:
            IncompleteRunError: A shard has run its cells, but cells of other shards are missing.
        """
        for study in chosen:
            self._look(study, alone=len(chosen) == 1)
        self._require_all()
        for study in self._left_open(chosen) if self.settings.get("extend") else ():
            self._look(study, second=True, alone=len(chosen) == 1)
        self._require_all()

    def _require_all(self) -> None:
        if self.incomplete:
            raise IncompleteRunError.together(self.incomplete, len(self.failed))

    def _look(self, study: AbstractStudy, *, second: bool = False, alone: bool = False) -> None:
        """Run a study, and keep its verdict or its error.

        Args:
            study: The study.
            second: Whether it runs twice as many seeds.
            alone: Whether its error is raised.
        """
        slug, began = study.CODE, time.perf_counter()
        settings = dict(self.settings)
        if settings.get("extend"):
            settings |= {"look_twice": False, "seeds": settings.get("seeds", _SEEDS) * (2 if second else 1)}
        try:
            verdict = runs.run(study, out=self.out, progress=_cells_of(slug, self.progress), **settings)
        except IncompleteRunError as error:
            self.incomplete.append(error)
            self.verdicts.pop(slug, None)
            result = str(error)
        except Exception as error:
            if alone:
                raise
            kind = "" if isinstance(error, NormscopeError) else f"{type(error).__name__}: "
            self.failed[slug] = f"{kind}{error}".partition("\n")[0]
            self.verdicts.pop(slug, None)
            result = f"failed: {self.failed[slug]}"
        else:
            self.verdicts[slug] = verdict
            result = f"{standing(verdict)}, before Holm's correction{', second look' if second else ''}"
        self.seconds[slug] = self.seconds.get(slug, 0.0) + (seconds := time.perf_counter() - began)
        if self.ended is not None:
            self.ended(slug, result, seconds)

    def _left_open(self, chosen: Sequence[AbstractStudy]) -> list[AbstractStudy]:
        """Return the studies that are unclear among the others, after the first look."""
        ran = [study for study in chosen if study.CODE in self.verdicts]
        together = adjust([self.verdicts[study.CODE] for study in ran])
        return [study for study, verdict in zip(ran, together, strict=True) if verdict.outcome is Outcome.UNCLEAR]


def _cells_of(slug: str, progress: Callable[[str, int, int], None] | None) -> Progress | None:
    """Return the progress of one study's cells, told with its slug."""
    return None if progress is None else lambda done, total, cell: progress(slug, done, total)
