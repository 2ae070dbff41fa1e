"""Runs of studies, judged together: run, loaded, written as a page, condensed."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from normscope import studies
from normscope._errors import NormscopeError, UsageError
from normscope.records import Verdict
from normscope.report import FEW, Condensed, Evidence, Section, theory_rows, write
from normscope.stats import adjust


@dataclass(frozen=True, slots=True)
class Judged:
    """A run of one study, judged.

    Attributes:
        run: The study and its records.
        verdict: Its verdict, corrected over all studies judged together.
        seconds: Wall time of this call; 0 where records were only read.
        command: The command that runs it again; runs that one command may have made have the same options.
    """

    run: studies.Run
    verdict: Verdict
    seconds: float = 0.0
    command: str = ""


def run(
    slugs: Sequence[str],
    *,
    out: Path,
    progress: Callable[[str, int, int], None] | None = None,
    ended: Callable[[str, str, float], None] | None = None,
    **settings: Any,
) -> tuple[list[Judged], dict[str, str]]:
    """Run studies one after the other into ``out`` and judge them together. One that fails does not lose the others.

    Args:
        slugs: The studies; a slug said twice is run once.
        out: Folder of runs; each study has a folder in it.
        progress: Called with (slug, cells complete, cells in all).
        ended: Called when a study has ended, with (slug, its outcome or what went wrong in words, seconds).
        settings: As ``normscope.studies.run`` takes them.

    Returns:
        The studies that ended well, and by slug what went wrong with the others.

    Raises:
        UsageError: A slug names no study, or an option is wrong; nothing has run then. Or no study ended well.
        DataError: The data cannot be read; nothing has run then.
        StoreError: The folder cannot be made; nothing has run then.
    """
    chosen = [studies.get(slug) for slug in dict.fromkeys(slugs)]
    studies.refuse(chosen, out=out, **settings)
    seconds: dict[str, float] = {}
    failed: dict[str, str] = {}
    for one in chosen:
        began = time.perf_counter()
        told = None if progress is None else _telling(progress, one.CODE)
        try:
            said = f"{studies.run(one, out=out, progress=told, **settings).outcome.value}, before Holm's correction"
        except Exception as error:
            if len(chosen) == 1:
                raise
            kind = "" if isinstance(error, NormscopeError) else f"{type(error).__name__}: "
            failed[one.CODE] = f"{kind}{error}".partition("\n")[0]
            said = f"failed: {failed[one.CODE]}"
        else:
            seconds[one.CODE] = time.perf_counter() - began
        if ended is not None:
            ended(one.CODE, said, time.perf_counter() - began)
    if not seconds:
        slug, said = next(iter(failed.items()))
        raise UsageError(f"none of the {len(chosen)} studies ended well; the first, {slug}: {said}")
    runs = [studies.load(out / slug)[0] for slug in seconds]
    return _judged(runs, list(seconds.values())), failed


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
    texts, whole = studies.texts(), _is_whole(runs)
    return write(
        path,
        title="What does batch norm do to your network?",
        sections=[_section(judged) for judged in runs],
        provenance=made_by,
        times=dict(_time(judged) for judged in runs),
        lede=_lede(runs),
        sentences=texts.sentences if whole else (),
        errata=texts.errata if whole else (),
    )


def condense(runs: Sequence[Judged]) -> Evidence:
    """Return the verdicts of some runs without their records, with what made them."""
    texts, whole = studies.texts(), _is_whole(runs)
    return Evidence(
        lede=_lede(runs),
        commands=_commands(runs),
        studies=tuple(_condensed(judged) for judged in runs),
        sentences=texts.sentences if whole else (),
        errata=texts.errata if whole else (),
    )


def _judged(runs: Sequence[studies.Run], seconds: Sequence[float]) -> list[Judged]:
    verdicts = adjust([found.verdict() for found in runs])
    asked = [found.asked() for found in runs]
    (usual, _), *_ = Counter(count for counts in asked for count in counts).most_common(1)
    commands = [
        found.command(usual if usual in counts else counts[0]) for found, counts in zip(runs, asked, strict=True)
    ]
    return [Judged(*row) for row in zip(runs, verdicts, seconds, commands, strict=True)]


def _telling(progress: Callable[[str, int, int], None], slug: str) -> studies.Progress:
    return lambda done, total, cell: progress(slug, done, total)


@lru_cache(maxsize=64)
def _section(judged: Judged) -> Section:
    """Return what is shown of a study; remembered, for the page and the condensed file both ask."""
    found = judged.run
    evidence = found.evidence()
    return Section(
        slug=found.study.CODE,
        title=found.study.title(),
        claim=found.study.CLAIM,
        page=found.study.page(),
        verdicts=(judged.verdict,),
        figures=tuple(found.study.figures(evidence)),
        tables=tuple(found.study.tables(evidence)),
        command=judged.command,
        topic=found.study.TOPIC,
        texts=studies.texts().judged_by(found.study.CODE),
    )


def _condensed(judged: Judged) -> Condensed:
    found, section = judged.run, _section(judged)
    config, made = found.store.config, found.store.provenance
    return Condensed(
        slug=found.study.CODE,
        card=found.study.CARD,
        title=section.title,
        topic=section.topic,
        texts=section.texts,
        verdict=judged.verdict,
        theory=tuple(theory_rows(section.tables)),
        preset=str(config["preset"]),
        data=str(config["data"]["name"]),
        device=str(config["device"]),
        seeds=found.evidence().seeds,
        seconds=round(sum(found.store.wall_times().values()), 1),
        normscope=str(config["versions"]["normscope"]),
        torch=str(config["versions"]["torch"]),
        cores=made.get("cores", {}).get("usable"),
        cpu=str(made.get("cpu") or ""),
        command=section.command,
    )


def _is_whole(runs: Sequence[Judged]) -> bool:
    """Tell whether so many studies are shown that what the texts say of all of them belongs beside."""
    return len(runs) > FEW


def _commands(runs: Sequence[Judged]) -> tuple[str, ...]:
    """Return what makes the committed files; studies that were run alike are run by one command."""
    alike: dict[str, list[str]] = {}
    for judged in runs:
        _, slug, options = judged.command.partition(judged.run.study.CODE)
        alike.setdefault(options, []).append(slug)
    everything = [one.CODE for one in studies.all()]
    lines = [
        f"normscope study run {'--all' if slugs == everything else ' '.join(slugs)}{options} --out runs/all"
        for options, slugs in alike.items()
    ]
    lines.append("normscope report runs/all --condense docs/evidence.json")
    return (*lines, "normscope report docs/evidence.json --markdown docs/evidence.md")


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
