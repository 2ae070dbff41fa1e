"""What stands out, in sentences: the rules of all probes, asked cell by cell."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from normscope import plots, probes
from normscope.probes import AbstractProbe, Readings, Remark, Urgency
from normscope.seen._facts import CellFacts, Seen

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True, slots=True)
class Said:
    """A remark, with the probe and the cell whose records it is about.

    Attributes:
        remark: The remark.
        probe: Code of the probe.
        cell: Name of the cell.
        also: Other cells of which the same can be said, of the same extreme layer.
    """

    remark: Remark
    probe: str
    cell: str
    also: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The cells, in words."""
        more = f" and {self.also[0]}" if len(self.also) == 1 else f" and {len(self.also)} more" if self.also else ""
        return self.cell + more

    @property
    def word(self) -> str:
        """How it is to be taken, in a word."""
        return {Urgency.BROKEN: "broken", Urgency.COSTLY: "costly", Urgency.NOTABLE: "notable"}[self.remark.urgency]


def stands_out(seen: Seen) -> list[Said]:
    """Return what stands out, the most urgent first; what holds for several cells is said once, of the worst.

    Args:
        seen: Records and facts.
    """
    found = []
    for cell, probe, readings in all_readings(seen):
        found += [Said(remark, probe.CODE, cell.cell) for remark in probe.stands_out(readings)]
    by_subject: dict[tuple[str, str, tuple[str, ...]], list[Said]] = {}
    for each in sorted(found, key=lambda said: -said.remark.rank):
        by_subject.setdefault((each.probe, each.remark.name, each.remark.sites[:1]), []).append(each)
    return [_once(same) for same in by_subject.values()]


def _once(same: list[Said]) -> Said:
    """Return the worst of the sentences on one subject, with the other cells that have it."""
    worst = same[0]
    return replace(worst, also=tuple(dict.fromkeys(each.cell for each in same[1:] if each.cell != worst.cell)))


def sentences_by_cell(seen: Seen) -> dict[str, list[str]]:
    """Return what stands out as sentences, by the name of the cell."""
    found: dict[str, list[str]] = {cell.cell: [] for cell in seen.cells}
    for said in stands_out(seen):
        found[said.cell].append(said.remark.says)
    return found


def quiet(seen: Seen, said: list[Said]) -> list[str]:
    """Return the codes of probes that were read and have nothing that stands out."""
    loud = {each.probe for each in said}
    return [probe.CODE for probe in read_probes(seen.frame) if probe.CODE not in loud]


def quiet_words(codes: list[str]) -> str:
    """Return the sentence on probes with nothing to tell; empty if there are none."""
    if not codes:
        return ""
    names = [code.replace("_", " ") for code in codes]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"Nothing stands out in {listed}."


def read_probes(frame: "polars.DataFrame") -> list[type[AbstractProbe]]:
    """Return the probes that have records, in the order of their questions and names."""
    there = set(frame["probe"].cast(str).unique().to_list()) if frame.height else set()
    return [probe for probe in probes.all() if probe.CODE in there]


def all_readings(seen: Seen) -> list[tuple[CellFacts, type[AbstractProbe], Readings]]:
    """Return the readings of each probe in each cell."""
    found = []
    for probe in read_probes(seen.frame):
        for cell in seen.cells:
            readings = readings_of(seen.frame, cell, probe.CODE)
            if readings.values:
                found.append((cell, probe, readings))
    return found


def readings_of(frame: "polars.DataFrame", cell: CellFacts, probe: str) -> Readings:
    """Return the records of one probe in one cell as series by name and layer."""
    import polars as pl

    rows = frame.filter((pl.col("cell") == cell.cell) & (pl.col("probe") == probe)).sort("step")
    held: dict[str, dict[str, list[tuple[int, float]]]] = {}
    words = rows.select(pl.col("name", "site").cast(pl.String), "step", "value")
    for name, site, step, value in words.iter_rows():
        held.setdefault(name, {}).setdefault(site, []).append((step, value))
    return Readings({name: _in_order(sites, cell.modules) for name, sites in held.items()}, cell.modules)


def _in_order(
    sites: Mapping[str, list[tuple[int, float]]], modules: Mapping[str, str]
) -> dict[str, list[tuple[int, float]]]:
    rank = {name: index for index, name in enumerate(modules)}
    return {site: sites[site] for site in sorted(sites, key=lambda s: (rank.get(s, len(rank)), plots.natural_key(s)))}
