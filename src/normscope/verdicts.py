"""Studies that are judged together: run or loaded, written as a page or condensed into a file."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from normscope import studies
from normscope._errors import UsageError
from normscope.records import Verdict
from normscope.records.provenance import made_elsewhere
from normscope.report import (
    FEW,
    CondensedEvidence,
    CondensedStudy,
    Section,
    picture_of,
    sections_of,
    theory_rows,
    write,
)
from normscope.running import connected
from normscope.stats import adjust, as_judged_alone

_TITLE = "What does batch norm do to your network?"
_COMMITTED = "src/normscope/studies/data/evidence.json"  # shipped with the package; `explain.committed` reads it
_MARKDOWN = f"normscope report {_COMMITTED} --markdown docs/evidence.md"


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
    """Run studies one after the other into a folder and judge them together. A study that fails does not stop others.

    Args:
        slugs: The studies; a slug that is repeated is run once.
        out: Folder of runs; each study has a folder in it.
        progress: Called with (slug, cells complete, cells in all).
        ended: Called after each look at a study, with (slug, its standing or its error in words, seconds).
        settings: As ``normscope.studies.runs.run`` takes them.

    Returns:
        The studies that ended well, and the error of each other study by its slug.

    Raises:
        UsageError: A slug names no study, or an option is wrong; nothing has run then. Or no study ended well.
        DataError: The data cannot be read; nothing has run then.
        StoreError: The folder cannot be made; nothing has run then.
        IncompleteRunError: A shard has run its cells, but cells of other shards are missing.
    """
    chosen = [studies.get(slug) for slug in dict.fromkeys(slugs)]
    studies.refuse(chosen, out=out, **settings)
    with connected(settings.get("executor"), settings.get("workers"), settings.get("device", "cpu")) as where:
        looks = studies.Looks(out, progress, ended, settings | {"executor": where})
        looks.at(chosen)
    ran = [study.CODE for study in chosen if study.CODE in looks.verdicts]
    if not ran:
        slug, reason = next(iter(looks.failed.items()))
        raise UsageError(f"none of the {len(chosen)} studies ended well; the first, {slug}: {reason}")
    seconds = [looks.seconds[slug] for slug in ran]
    return _judged([studies.load(out / slug)[0] for slug in ran], seconds), looks.failed


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
    texts, whole = studies.texts(), _is_whole(runs)
    return write(
        path,
        title=_TITLE,
        sections=[section_of(judged) for judged in runs],
        provenance=runs[0].run.store.provenance,
        times=dict(_time(judged) for judged in runs),
        lede=_lede(runs),
        sentences=texts.sentences if whole else (),
        errata=texts.errata if whole else (),
    )


def write_condensed(evidence: CondensedEvidence, path: Path) -> Path:
    """Write the page of a condensed file: no run is needed, and only small figures are there.

    Args:
        evidence: The file's contents.
        path: The HTML file to write.

    Raises:
        StoreError: The page cannot be written, or a picture of the file is damaged.
    """
    kept = evidence.studies
    pages = {study.CODE: study.page() for study in studies.all() if study.CODE in {each.slug for each in kept}}
    return write(
        path,
        title=_TITLE,
        sections=sections_of(evidence, pages),
        provenance={
            name: " and ".join(sorted({str(getattr(study, name)) for study in kept if getattr(study, name)}))
            for name in ("data", "preset", "device", "normscope", "torch", "cpu", "cores")
        }
        | {"commands": "; ".join(evidence.commands)},
        times={study.slug: study.seconds for study in kept},
        lede=evidence.lede,
        sentences=evidence.sentences,
        errata=evidence.errata,
    )


def condense(runs: Sequence[Judged]) -> CondensedEvidence:
    """Return the verdicts of some runs without their records, with what made them."""
    texts, whole = studies.texts(), _is_whole(runs)
    condensed = tuple(_condensed(judged) for judged in runs)
    return CondensedEvidence(
        lede=_lede_of(condensed),
        commands=_commands(runs),
        studies=condensed,
        sentences=texts.sentences if whole else (),
        errata=texts.errata if whole else (),
    )


def joined(evidence: CondensedEvidence, kept: CondensedEvidence) -> CondensedEvidence:
    """Return what two condensed files hold, corrected for all their studies being judged together.

    Args:
        evidence: Its studies take the place of those of the same names in the other.
        kept: A file that was condensed before; the records behind it need not be there.
    """
    anew = {study.slug for study in evidence.studies}
    rest = [study for study in kept.studies if study.slug not in anew]
    found = sorted([*evidence.studies, *rest], key=lambda study: (study.card, study.slug))
    verdicts = adjust([as_judged_alone(study.verdict) for study in found])
    texts, whole = studies.texts(), len(found) > FEW
    report = f"normscope report runs/all --join {_COMMITTED} --condense {_COMMITTED}"
    before = [line.replace(" --all ", f" {' '.join(study.slug for study in rest)} ") for line in kept.commands]
    runs = [line for line in (*before, *evidence.commands) if not line.startswith("normscope report ")]
    return CondensedEvidence(
        lede=evidence.lede if not rest else _lede_of(found),
        commands=(*dict.fromkeys(runs), report, _MARKDOWN),
        studies=tuple(replace(study, verdict=verdict) for study, verdict in zip(found, verdicts, strict=True)),
        sentences=texts.sentences if whole else (),
        errata=texts.errata if whole else (),
    )


def _judged(runs: Sequence[studies.Run], seconds: Sequence[float]) -> list[Judged]:
    """Correct the verdicts of runs for being judged together, and give each run the command that repeats it.

    Several numbers of seeds may have been asked for a run; runs that one command may have made get the same number.
    """
    verdicts = adjust([run.verdict() for run in runs])
    asked = [run.asked(together=len(runs)) for run in runs]
    (usual, _), *_ = Counter(count for counts in asked for count in counts).most_common(1)
    commands = [run.command(usual if usual in counts else counts[0]) for run, counts in zip(runs, asked, strict=True)]
    return [Judged(*row) for row in zip(runs, verdicts, seconds, commands, strict=True)]


@lru_cache(maxsize=64)
def section_of(judged: Judged) -> Section:
    """Return the section of a study for a page; cached, for the page and the condensed file both ask."""
    study, evidence = judged.run.study, judged.run.evidence()
    with studies.own_code(study, "drawing"):
        figures, tables = study.drawn(evidence), study.tabulated(evidence)
    return Section(
        slug=study.CODE,
        title=study.title(),
        claim=study.CLAIM,
        page=study.page(),
        verdicts=(judged.verdict,),
        figures=figures,
        tables=tables,
        command=judged.command,
        topic=study.TOPIC,
        texts=studies.texts().judged_by(study.CODE),
        address=study.address(),
    )


def _condensed(judged: Judged) -> CondensedStudy:
    """Return a study without its records."""
    run, section = judged.run, section_of(judged)
    config, made_by = run.store.config, run.store.provenance
    return CondensedStudy(
        slug=section.slug,
        card=run.study.CARD,
        title=section.title,
        topic=section.topic,
        texts=section.texts,
        verdict=judged.verdict,
        theory=tuple(theory_rows(section.tables)),
        preset=str(config["preset"]),
        data=str(config["data"]["name"]),
        device=str(config["device"]),
        seeds=run.evidence().seeds,
        seconds=round(sum(run.store.wall_times().values()), 1),
        normscope=str(config["versions"]["normscope"]),
        torch=str(config["versions"]["torch"]),
        cores=made_by.get("cores", {}).get("usable"),
        cpu=str(made_by.get("cpu") or ""),
        command=section.command,
        picture=picture_of(section.figures),
    )


def _is_whole(runs: Sequence[Judged]) -> bool:
    """Return whether the runs are many enough to show the source texts and errata, which are about all studies."""
    return len(runs) > FEW


def _commands(runs: Sequence[Judged]) -> tuple[str, ...]:
    """Return the commands that make the committed files; studies with the same options are run by one command."""
    alike: dict[str, list[str]] = {}
    for judged in runs:
        slug = judged.run.study.CODE
        alike.setdefault(judged.command.removeprefix(f"normscope study run {slug}"), []).append(slug)
    everything = [study.CODE for study in studies.all()]
    lines = [
        f"normscope study run {'--all' if slugs == everything else ' '.join(slugs)}{options} --out runs/all"
        for options, slugs in alike.items()
    ]
    lines.append(f"normscope report runs/all --condense {_COMMITTED}")
    return (*lines, _MARKDOWN)


def _time(judged: Judged) -> tuple[str, float]:
    """Return a study's name and wall time; for a run that was only loaded, the summed wall time of its cells."""
    slug = judged.run.study.CODE
    return (slug, judged.seconds) if judged.seconds else (f"{slug}, cells", sum(judged.run.store.wall_times().values()))


def _lede(runs: Sequence[Judged]) -> str:
    """Return the sentence under the title of the page of some runs."""
    configs = [judged.run.store.config for judged in runs]
    return _said(
        {str(judged.run.store.config["data"]["name"]) for judged in runs if judged.run.study.READS_DATA},
        {str(config["preset"]) for config in configs},
        {judged.verdict.effect.n for judged in runs},
        {made_elsewhere(config["versions"]) for config in configs},
    )


def _lede_of(condensed: Sequence[CondensedStudy]) -> str:
    """Return the sentence under the title of a condensed file."""
    without = {study.CODE for study in studies.all() if not study.READS_DATA}
    return _said(
        {study.data for study in condensed if study.slug not in without},
        {study.preset for study in condensed},
        {study.verdict.effect.n for study in condensed},
        {made_elsewhere({"normscope": study.normscope, "torch": study.torch}) for study in condensed},
    )


def _said(data: set[str], presets: set[str], seeds: set[int], elsewhere: set[str]) -> str:
    """Say on what data, with which presets, how many seeds and which other versions something was measured."""
    counts = sorted(seeds - {0}) or [0]
    count = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    said = f"On {', '.join(sorted(data)) or 'random inputs'}, preset {', '.join(sorted(presets))}, "
    said += f"{count} seed{'s' if counts[-1] != 1 else ''} an arm."
    whole = "" not in elsewhere
    others = [each if whole else each.replace("The records", "Some records", 1) for each in sorted(elsewhere - {""})]
    return " ".join([said, *others])
