"""A grid of small cells with records, for tests of the store."""

from normscope.records import Cell, Record

CONFIG = {"study": "demo", "seeds": 10, "nested": {"lr": 0.1}}


def cell_of(arm: str, seed: int, **point) -> Cell:
    return Cell("demo", arm, seed, point, {"steps": 3})


def records_of(cell: Cell, n: int = 6) -> list[Record]:
    return [Record(cell.id, k // 2, "training", f"layer.{k % 2}", "loss", seed_value(cell, k)) for k in range(n)]


def seed_value(cell: Cell, k: int) -> float:
    return cell.seed + k / 8


def grid() -> list[Cell]:
    return [cell_of(arm, seed, lr=lr) for arm in ("none", "bn") for seed in (10, 2) for lr in (0.3, 0.1)]
