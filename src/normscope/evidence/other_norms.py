"""Norms that are of no class that the rules know: which a model has, and the running statistics that some keep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.nn import LocalResponseNorm, Module

from normscope.modules.sites import is_known_norm
from normscope.records.numbers import counted
from normscope.surgery import Statistics, norm_sites, statistics_of
from normscope.surgery.foreign import read


@dataclass(frozen=True)
class OtherNorm:
    """A norm of a class that the rules do not know.

    Attributes:
        module: The norm.
        statistics: Its running statistics; None if it keeps none.
    """

    module: Module
    statistics: Statistics | None


def other_norms(model: Module) -> dict[str, OtherNorm]:
    """Return the norms of other classes than torch's and those derived from them, by qualified name.

    A norm is known by what copies of it compute; see ``surgery.norm_sites``.
    """
    found = {}
    for site in norm_sites(model):
        if is_known_norm(site.module) or isinstance(site.module, LocalResponseNorm):
            continue
        if type(site.module).__module__.startswith("normscope.") or not read(site.module).is_norm:
            continue
        found[site.path] = OtherNorm(site.module, statistics_of(site.module))
    return found


def notes_on(others: Mapping[str, OtherNorm]) -> tuple[str, ...]:
    """Say of each class which norms of it there are, and what the rules do not see of them."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for path, other in others.items():
        kinds.setdefault((type(other.module).__name__, _unseen(other.statistics)), []).append(path)
    return tuple(
        f"{counted(len(paths), 'norm')} of the class {name} ({', '.join(paths[:3])}{', ...' * (len(paths) > 3)}), "
        f"known by what it computes: {unseen}"
        for (name, unseen), paths in kinds.items()
    )


def _unseen(statistics: Statistics | None) -> str:
    if statistics is None:
        return "rules that ask for a norm by its class do not see it"
    if not statistics.moves:
        return "its running statistics never move, and of the rules on batch norms NS103 alone reads them"
    return (
        "of the rules on running statistics NS103 and NS109 alone read its own; surgery.convert(model, 'torch-batch', "
        "example=...) makes it a norm that all of them read"
    )


def buffers_of(others: Mapping[str, OtherNorm], *, moving: bool) -> dict[str, dict[str, Any]]:
    """Return the running statistics of norms of other classes, by the names that torch has for them.

    Args:
        others: The norms.
        moving: Whether norms are left out that never move them.
    """
    found: dict[str, dict[str, Any]] = {}
    for path, other in others.items():
        held = other.statistics
        if held is not None and (held.moves or not moving):
            found[path] = {"running_mean": held.mean, "running_var": held.var}
            found[path] |= {} if held.count is None else {"num_batches_tracked": held.count}
    return found
