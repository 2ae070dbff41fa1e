"""The public face: what joins rooms that do not know each other. Studies meet statistics over several, and the page."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from normscope import probes, rules, studies
from normscope._errors import UsageError
from normscope._unit import Unit, discover, near
from normscope._watched import sections_of
from normscope.records import Verdict, provenance
from normscope.report import Section, write
from normscope.stats import adjust

study = studies.get


class Scope(probes.Scope):
    __doc__ = probes.Scope.__doc__

    def report(self, path: str | PathLike[str] = "report.html") -> Path:
        """Draw every record that the probes have made so far on one self-contained page.

        Args:
            path: The HTML file to write.

        Returns:
            The path written.

        Raises:
            UsageError: Nothing was recorded yet.
            StoreError: The path cannot be written.
        """
        frame = self.records()
        if frame.is_empty():
            raise UsageError("nothing was recorded yet: run at least one `with scope.step(batch)` that is due")
        return write(
            Path(path),
            title=f"What the probes saw: {type(self.model).__name__}",
            sections=sections_of(frame, self.probes),
            provenance=provenance.collect(),
            lede=f"{frame.height} records of {self.index} training steps.",
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """A run of one study, judged.

    Attributes:
        run: The study and its records.
        verdict: Its verdict, corrected over all studies judged together.
        seconds: Wall time of this call; 0 where records were only read.
    """

    run: studies.Run
    verdict: Verdict
    seconds: float = 0.0


def run(
    slugs: Sequence[str],
    *,
    out: Path,
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> list[Judged]:
    """Run studies one after the other into ``out`` and judge them together.

    Args:
        slugs: The studies; a slug said twice is run once.
        out: Folder of runs; each study has a folder in it.
        progress: Called with (slug, cells complete, cells in all).
        settings: As ``normscope.studies.run`` takes them.

    Raises:
        UsageError: A slug names no study; nothing has run then.
    """
    chosen = [studies.get(slug) for slug in dict.fromkeys(slugs)]
    seconds = []
    for one in chosen:
        began = time.perf_counter()
        told = None if progress is None else _telling(progress, one.CODE)
        studies.run(one, out=out, progress=told, **settings)
        seconds.append(time.perf_counter() - began)
    runs = [studies.load(out / one.CODE)[0] for one in chosen]
    return _judged(runs, seconds)


def load(folder: Path) -> list[Judged]:
    """Open the runs that lie in a folder and judge them together."""
    runs = studies.load(folder)
    return _judged(runs, [0.0] * len(runs))


def write_report(runs: Sequence[Judged], path: Path) -> Path:
    """Write the page of some runs.

    Args:
        runs: What to show.
        path: The HTML file to write.
    """
    made_by = runs[0].run.store.provenance
    return write(
        path,
        title="What does batch norm do to your network?",
        sections=[_section(judged) for judged in runs],
        provenance=made_by,
        times=dict(_time(judged) for judged in runs),
        lede=_lede(runs),
    )


def unit(name: str) -> Unit | type[Unit]:
    """Find a study, probe, layer or rule by its code; a rule also by its name.

    Raises:
        UsageError: Nothing has that name; the message says what is near.
    """
    from normscope import layers
    from normscope.layers._norm import AbstractLayer

    known: dict[str, Any] = {found.CODE: found for found in studies.all()}
    known |= {found.CODE: found for found in probes.all()}
    known |= {found.CODE: found for found in discover(layers, AbstractLayer)}
    known |= {key: rule for rule in rules.all() for key in (rule.CODE, rule.SLUG)}
    if name in known:
        found: Unit | type[Unit] = known[name]
        return found
    raise UsageError(f"no study, probe, layer or rule is called {name!r}: did you mean {near(name, known)}?")


def _judged(runs: Sequence[studies.Run], seconds: Sequence[float]) -> list[Judged]:
    verdicts = adjust([found.verdict() for found in runs])
    return [Judged(*row) for row in zip(runs, verdicts, seconds, strict=True)]


def _telling(progress: Callable[[str, int, int], None], slug: str) -> studies.Progress:
    return lambda done, total, cell: progress(slug, done, total)


def _section(judged: Judged) -> Section:
    found = judged.run
    return Section(
        slug=found.study.CODE,
        title=found.study.title(),
        claim=found.study.CLAIM,
        page=found.study.page(),
        verdicts=(judged.verdict,),
        figures=tuple(found.figures()),
        tables=tuple(found.tables()),
        command=found.command(),
        topic=found.study.TOPIC,
    )


def _time(judged: Judged) -> tuple[str, float]:
    """Return what this call took; where records were only read, what their cells took one by one."""
    slug = judged.run.study.CODE
    return (slug, judged.seconds) if judged.seconds else (f"{slug}, cells", sum(judged.run.store.wall_times().values()))


def _lede(runs: Sequence[Judged]) -> str:
    configs = [judged.run.store.config for judged in runs]
    data = sorted({str(config["data"]["name"]) for config in configs})
    presets = sorted({str(config["preset"]) for config in configs})
    seeds = sorted({judged.verdict.effect.n for judged in runs})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"{len(runs)} {'study' if len(runs) == 1 else 'studies'}, preset {', '.join(presets)}, on {', '.join(data)}, "
        f"{count} seeds an arm."
    )
