"""The records of a comparison as evidence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from normscope._errors import DataError, StoreError
from normscope.comparing.cost import read_cost
from normscope.comparing.plan import Plan
from normscope.records import Store
from normscope.stats import LEVEL
from normscope.studies import Evidence

if TYPE_CHECKING:
    import polars as pl


#: What the configuration of a run says that it is.
CODE = "comparison"


def is_comparison(folder: Path) -> bool:
    """Say whether a folder holds a run of a comparison."""
    try:
        return bool(Store.open(folder).config.get("kind") == CODE)
    except StoreError:
        return False


def evidence_of(
    store: Store, plan: Plan, arms: Mapping[str, str], *, base: Sequence[str], seeds: int | None = None
) -> Evidence:
    """Return the records of the seeds of which every cell is complete.

    Args:
        store: The run.
        plan: What was run.
        arms: Words for the arms, by name.
        base: The arms that were asked for; an arm that was added later does not make a seed incomplete.
        seeds: Only seeds below this number; None for all.

    Raises:
        DataError: Not one seed is complete.
    """
    import polars as pl

    counts: dict[int, int] = {}
    for cell in store.cells():
        if cell.arm in base and (seeds is None or cell.seed < seeds):
            counts[cell.seed] = counts.get(cell.seed, 0) + 1
    whole = sorted(seed for seed, count in counts.items() if count >= len(base) * len(plan.rates))
    if not whole:
        raise DataError(f"{store.path}: no seed is complete yet: run the same comparison again to go on")
    frame = store.frame().filter(pl.col("seed").is_in(whole) & (pl.col("probe") != "note"))
    return Evidence(_with_cost(frame, store), {**plan.as_json(), "arms": dict(arms)}, tuple(whole), LEVEL, "")


def _with_cost(frame: "pl.DataFrame", store: Store) -> "pl.DataFrame":
    """Add what a step costs, which lies beside the records because no run repeats it to the last bit."""
    import polars as pl

    rows = [
        {"arm": arm, "seed": seed, "rate": 1.0, "step": 0, "probe": record.probe, "site": "", "name": record.name}
        | {"value": record.value, "cell": "", "unit": ""}
        for arm, seed, record in read_cost(store.path)
    ]
    if not rows:
        return frame
    return pl.concat([frame, pl.DataFrame(rows).select(frame.columns).cast(dict(frame.schema))])  # type: ignore[arg-type]
