"""The records of a comparison as evidence."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope._errors import DataError, StoreError
from normscope.comparing.cost import read_cost
from normscope.comparing.plan import Plan
from normscope.comparing.reuse import CODE, run_of, serving
from normscope.records import Store
from normscope.stats import LEVEL
from normscope.studies import Evidence
from normscope.surgery import ArmReport

if TYPE_CHECKING:
    import polars as pl


def is_comparison(folder: Path) -> bool:
    """Say whether a folder holds a run of a comparison."""
    try:
        return bool(Store.open(folder).config.get("kind") == CODE)
    except StoreError:
        return False


def evidence_of(store: Store, plan: Plan, arms: Sequence[Mapping[str, Any]], *, seeds: int | None = None) -> Evidence:
    """Return the records of the seeds of which every cell is complete.

    Other runs that lie in the folder are left alone, and so is what probes have read that the plan does not name.

    Args:
        store: The run.
        plan: What was run.
        arms: The arms as the configuration names them; an arm that was added later does not make a seed incomplete.
        seeds: Only seeds below this number; None for all.

    Raises:
        DataError: Not one seed is complete.
    """
    import polars as pl

    there = store.cells()
    numbers = sorted({cell.seed for cell in there if seeds is None or cell.seed < seeds})
    wanted = [(arm, run_of(plan, arm, seed, rate)) for seed in numbers for arm in arms for rate in plan.rates]
    found = serving([cell for _, cell in wanted], there)
    missing = {cell.seed for arm, cell in wanted if cell.id not in found and not arm.get("added")}
    whole = [seed for seed in numbers if seed not in missing]
    if not whole:
        raise DataError(f"{store.place}: no seed is complete yet: run the same comparison again to go on")
    others = {code for cell in found.values() for code in cell.settings["readings"]} - plan.readings.keys()
    frame = store.frame().filter(
        pl.col("cell").cast(pl.String).is_in([cell.id for cell in found.values()])
        & pl.col("seed").is_in(whole)
        & ~pl.col("probe").cast(pl.String).is_in(["note", *others])
    )
    words = {arm["name"]: arm["words"] for arm in arms}
    frame = _with_cost(frame, store, words, whole)
    return Evidence(frame, {**plan.as_json(), "arms": words}, tuple(whole), LEVEL, "")


def reports_of(store: Store) -> Mapping[str, ArmReport]:
    """Return what was done to make each arm of a run, by its name.

    Raises:
        StoreError: The configuration of the run holds no such reports.
    """
    try:
        return {name: ArmReport.from_json(report) for name, report in store.config["reports"].items()}
    except (ValueError, AttributeError) as error:
        raise StoreError(f"{store.place}: made by another version of normscope ({error}): run it again") from None


def _with_cost(frame: "pl.DataFrame", store: Store, arms: Collection[str], seeds: Collection[int]) -> "pl.DataFrame":
    """Add what a step costs, which lies beside the records because no run repeats it to the last bit."""
    import polars as pl

    rows = [
        {"arm": arm, "seed": seed, "rate": 1.0, "step": 0, "probe": record.probe, "site": "", "name": record.name}
        | {"value": record.value, "cell": "", "unit": ""}
        for arm, seed, record in read_cost(store.path)
        if arm in arms and seed in seeds
    ]
    if not rows:
        return frame
    return pl.concat([frame, pl.DataFrame(rows).select(frame.columns).cast(dict(frame.schema))])  # type: ignore[arg-type]
