"""Activations, modules or functions: what passes them, counted over batches."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_RELUS = {"relu", "relu_", "relu6", "relu6_"}
_TAILS = {"tanh": (-0.97, 0.97), "sigmoid": (0.015, 0.985)}


@dataclass(slots=True)
class Activation:
    """A place at which values pass a ReLU, tanh or sigmoid, over the batches that were looked at.

    Attributes:
        place: The activation's module; where it is a function, the layer whose output it reads, or the module around.
        kind: ``"relu"``, ``"tanh"`` or ``"sigmoid"``.
        is_module: Whether ``place`` is the activation's own module.
        made_by: The layers and norms whose output it reads.
        positive: By unit, how many of its outputs were above zero.
        values: Outputs a unit.
        samples: Samples that these are of.
        tails: Outputs within 1.5 % of the range from an end, of ``total``.
        is_gate: Whether other values are multiplied by the outputs.
        is_read: Whether a layer or norm reads the outputs.
    """

    place: str
    kind: str
    is_module: bool
    made_by: frozenset[str]
    positive: Tensor | None = None
    values: int = 0
    samples: int = 0
    tails: int = 0
    total: int = 0
    is_gate: bool = False
    is_read: bool = False


def count(act: Activation, y: Tensor, axis: int, known: frozenset[str]) -> None:
    """Count by unit the outputs of a ReLU that are above zero.

    Args:
        act: Where.
        y: The outputs.
        axis: Axis of the units.
        known: What is known of the axis; where nothing is, outputs of three axes are passed over.
    """
    if y.ndim == 3 and not known:
        return  # positions or channels: nothing says which
    above = (y > 0).movedim(axis, -1).flatten(0, -2)
    positive = above.sum(0).cpu()
    if act.positive is not None and act.positive.shape != positive.shape:
        return
    act.positive = positive if act.positive is None else act.positive + positive
    act.values += len(above)
    act.samples += len(y)


def function_kind(name: str, args: Any, kwargs: Any) -> str:
    """Return which non-linearity a function is; empty for all others."""
    if name in _RELUS:
        return "relu"
    if name in ("hardtanh", "hardtanh_"):
        low = kwargs.get("min_val", args[1] if len(args) > 1 else -1.0)
        return "relu" if low == 0 else ""
    if name in ("clamp", "clamp_", "clamp_min", "clamp_min_"):
        low = kwargs.get("min", args[1] if len(args) > 1 else None)
        high = kwargs.get("max", args[2] if len(args) > 2 else None)
        return "relu" if isinstance(low, (int, float)) and low == 0 and high is None else ""
    return name.rstrip("_") if name.rstrip("_") in _TAILS else ""


def count_tails(act: Activation, y: Tensor) -> None:
    """Count outputs of a tanh or sigmoid that lie near an end of the range."""
    low, high = _TAILS[act.kind]
    act.tails += int(torch.count_nonzero((y < low) | (y > high)))
    act.total += y.numel()
