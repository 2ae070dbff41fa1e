"""How squared gradients grow through a random chain: what a cell records of it, and how two growths are compared."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from normscope.plots import number
from normscope.records import Cell, Record
from normscope.studies.evidence import Evidence, Floats
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.chain import rate, theory
from normscope.studies.quantity import Quantity, mean

#: Options of the chain of each arm.
CHAINS: dict[str, dict[str, Any]] = {
    "none": {"norm": False},
    "batch": {},
    "tanh": {"activation": "tanh"},
    "gelu": {"activation": "gelu"},
    "linear": {"activation": "linear"},
    "beta 0.5": {"shift": 0.5},
    "beta 1": {"shift": 1.0},
    "beta 2": {"shift": 2.0},
    "tanh, gamma 0.5": {"activation": "tanh", "gain": 0.5},
    "tanh, gamma 2": {"activation": "tanh", "gain": 2.0},
    "detached": {"detached": True},
    "orthogonal": {"orthogonal": True, "activation": "linear"},
    "residual": {"residual": True},
}
#: Chains whose rate is known in theory.
KNOWN = ("none", "batch", "linear", "tanh", "gelu", "beta 1", "beta 2", "tanh, gamma 0.5", "tanh, gamma 2")
CHAIN_WORDS = {
    "none": "no norm",
    "batch": "batch norm",
    "tanh": "batch norm and tanh",
    "gelu": "batch norm and GELU",
    "linear": "batch norm and no activation",
    "beta 0.5": "batch norm, beta 0.5",
    "beta 1": "batch norm, beta 1",
    "beta 2": "batch norm, beta 2",
    "tanh, gamma 0.5": "batch norm, gamma 0.5, and tanh",
    "tanh, gamma 2": "batch norm, gamma 2, and tanh",
    "detached": "batch norm whose statistics are taken for constants",
    "orthogonal": "batch norm, orthogonal weights and no activation",
    "residual": "batch norm and skips",
}
#: Growth below this factor a layer, or above one over it, is none: a factor of three over some twenty layers.
STEADY = 1.05
#: What rounding in float32 may change of a growth, as a share of it.
ROUNDING = 1e-3
RATE = mean("rate", "growth of the squared gradient per layer", probe="chain")


def records_of(cell: Cell, squares: Sequence[float]) -> Iterator[Record]:
    """Yield the rate of growth toward the input, and the squared gradient of each layer over that of the last.

    Args:
        cell: That ran the chain.
        squares: Mean squared gradient of each layer, as ``lab.chain.growth`` returns them.
    """
    record = recorder(cell, "chain")
    yield record("rate", rate(squares))
    for index, value in enumerate(squares):
        yield record("squared_gradient", value / squares[-1], site=f"layer.{index}")


def closer_to_one(without: Floats, with_norm: Floats) -> Floats:
    """Return by how much nearer to 1 the second growth is than the first, as a log-ratio.

    Positive where it is nearer: growth .25 and growth 4 are equally far from 1.
    """
    return np.asarray(np.abs(np.log(without)) - np.abs(np.log(with_norm)), dtype=np.float64)


def typical_rate(evidence: Evidence, **where: Any) -> float:
    """Return the mean rate over seeds that have one; NaN where none has."""
    found = RATE(evidence, **where)
    kept = found[np.isfinite(found)]
    return float(kept.mean()) if len(kept) else float("nan")


def growth_words(growth: float) -> str:
    """Say what a growth per layer does to the squared gradient: ``"shrinks to 0.25 of itself"``."""
    if growth < 1 / STEADY:
        return f"shrinks to {number(growth)} of itself"
    return f"grows {number(growth)} times" if growth > STEADY else f"keeps its size ({number(growth)})"


def compared_words(without: float, with_norm: float) -> str:
    """Say what becomes of the squared gradient without a norm and with batch norm, and what that means.

    The clause stands after "Yes: " or "No, the opposite: " and has ``{effect}`` for the effect of ``closer_to_one``.
    """
    meaning = {
        ("vanishes", "steady"): "; vanishing is cured",
        ("vanishes", "explodes"): "; vanishing is cured, and a milder explosion is left"
        if closer_to_one(np.array(without), np.array(with_norm)) > 0
        else "; instead of vanishing it explodes",
        ("steady", "explodes"): "; batch norm makes an explosion",
        ("steady", "vanishes"): "; batch norm makes it vanish",
        ("explodes", "steady"): "; the explosion is cured",
    }.get((_fate(without), _fate(with_norm)), "")
    return (
        f"per layer toward the input the squared gradient {growth_words(without)} without a norm and "
        f"{growth_words(with_norm)} with batch norm, {{effect}} to 1{meaning}"
    )


#: The words of ``closer_to_one`` for both signs.
CLOSER = ("closer", "less close")


def _fate(growth: float) -> str:
    return "vanishes" if growth < 1 / STEADY else "explodes" if growth > STEADY else "steady"


def scale_dependence(evidence: Evidence, scales: Sequence[float], **where: Any) -> Floats:
    """Return per seed the largest relative difference of the rates at several scales of the weights from their mean."""
    rates = np.array([RATE(evidence, scale=scale, **where) for scale in scales])
    centre = rates.mean(0)
    return np.asarray(np.abs(rates - centre).max(0) / centre)


def independence_of_scale(scales: Sequence[float]) -> Quantity:
    """Return the quantity of ``scale_dependence``: 0 where the scale of the weights does not matter."""
    return Quantity(
        "relative difference of the growth at several scales of the weights",
        lambda evidence, **where: scale_dependence(evidence, scales, **where),
    )


def knows_finite_batches(arm: str) -> bool:
    """Say whether theory knows the growth in a finite batch."""
    return CHAINS[arm].get("activation", "relu") in ("relu", "linear") and not CHAINS[arm].get("shift")


def growth_in_theory(arm: str, batch: int) -> float:
    """Return by how much the gradient grows a layer at initialization; without batch norm at He's scale it does not."""
    if arm == "none":
        return 1.0
    options = CHAINS[arm]
    name = options.get("activation", "relu")
    return theory(
        name,
        batch if knows_finite_batches(arm) else None,
        gain=options.get("gain", 1.0),
        shift=options.get("shift", 0.0),
    )
