"""Which complete runs of a folder serve a comparison: those of its arms, whatever else was asked for with them."""

from collections.abc import Iterable, Mapping
from typing import Any

from normscope.comparing.arms import ASIDE
from normscope.comparing.plan import Plan
from normscope.records import Cell
from normscope.records.json import canonical

#: What the configuration of a comparison says that it is, and what its cells are of.
CODE = "comparison"


def is_watched(does: str, rate: float) -> bool:
    """Say whether probes are read in a run of an arm at a learning rate.

    Args:
        does: What is done to the arm's model, a name of ``surgery.ARMS``.
        rate: Factor of the learning rate.
    """
    return rate == 1.0 and does not in ASIDE


def run_of(plan: Plan, arm: Mapping[str, Any], seed: int, rate: float) -> Cell:
    """Return the cell of a run: an arm at a seed and a learning rate.

    Other arms, rates and questions of the comparison are no part of its name, so that the run serves with others too.

    Args:
        plan: What is run.
        arm: The arm as the configuration of a comparison names it: ``name``, ``does`` and ``made_by``.
        seed: The seed.
        rate: Factor of the learning rate.
    """
    readings = plan.as_json()["readings"] if is_watched(arm["does"], rate) else {}
    settings = {"steps": plan.steps, "batches": plan.batches, "readings": readings}
    made = {"does": arm["does"], "made_by": arm["made_by"]}
    return Cell(CODE, arm["name"], seed, {"rate": rate}, settings | made)


def serving(wanted: Iterable[Cell], there: Iterable[Cell]) -> dict[str, Cell]:
    """Return the complete cells that serve for the wanted ones, by the id of the wanted cell.

    A cell serves for another if they differ in nothing but that more probes were read in it: no probe changes a
    training, nor what another probe reads. Of several the one with the fewest probes serves.
    """
    alike: dict[str, list[Cell]] = {}
    for cell in there:
        alike.setdefault(_but_for_probes(cell), []).append(cell)
    found = {}
    for cell in wanted:
        fit = [each for each in alike.get(_but_for_probes(cell), ()) if _reads(each, cell.settings["readings"])]
        if fit:
            found[cell.id] = min(fit, key=lambda each: (len(each.settings["readings"]), each.id))
    return found


def _reads(cell: Cell, readings: Mapping[str, Any]) -> bool:
    read = cell.settings["readings"]
    return all(read.get(code) == reading for code, reading in readings.items())


def _but_for_probes(cell: Cell) -> str:
    rest = {key: value for key, value in cell.settings.items() if key != "readings"}
    return canonical([cell.study, cell.arm, cell.seed, cell.point, rest])
