"""Find out from numbers what a forward function computes: a normalization or a softmax, and what stands around it.

Nothing of the user's code is read. With gain 1 and bias 0 and before the activation the output is the core. A core that
is proportional to the input (or to the centred input) within groups of entries is a normalization of these groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from normscope._errors import UsageError
from normscope.verifying.affine import SAME, Affine, around
from normscope.verifying.calls import Array, Calls
from normscope.verifying.differences import quietly
from normscope.verifying.groups import Groups, partitions
from normscope.verifying.samples import Point


@dataclass(frozen=True)
class Core:
    """What a forward function computes, but for gain and bias.

    Attributes:
        kind: ``"norm"``, ``"softmax"``, ``"log-softmax"``, or ``"other"`` where only what stands around it is known.
        argument: The argument that is normalized.
        groups: The entries that are normalized together.
        gain: Argument that multiplies the core; empty if there is none.
        bias: Argument that is added; empty if there is none.
        centred: Whether a mean is subtracted.
        plus_one: Whether the core is multiplied by 1 + gain.
        ratio: Over groups, ``1/r**2 = ratio * mean square + eps`` where ``inside``, else
            ``1/r = ratio * root mean square + eps``; NaN where neither holds.
        eps: See ``ratio``.
        inside: See ``ratio``.
        activation: Applied to what comes out; empty if there is none.
    """

    kind: str
    argument: str
    groups: Groups
    gain: str = ""
    bias: str = ""
    centred: bool = False
    plus_one: bool = False
    ratio: float = float("nan")
    eps: float = 0.0
    inside: bool = True
    activation: str = ""


@dataclass(frozen=True)
class Parts:
    """The parts of a core at one point, each of the shape of the input.

    Attributes:
        values: By name: ``"x"``, ``"xc"`` (centred, or ``x`` itself), ``"h"`` (the core), ``"r"`` (1 over the
            deviation), ``"softmax"``, ``"size"`` (mean square of ``xc`` over the group).
        gain: What multiplies the core.
        slope: Derivative of the activation.
    """

    values: dict[str, Array] = field(default_factory=dict)
    gain: Array = field(default_factory=lambda: np.ones(()))
    slope: Array = field(default_factory=lambda: np.ones(()))


def recognise(calls: Calls, points: Sequence[Point]) -> tuple[Core, list[Parts]] | None:
    """Return what the forward function computes, and its parts at each point; None if it is nothing known."""
    pointwise = None
    for place in calls.differentiable:
        if points[0].inputs[place].shape != points[0].output.shape or not points[0].output.ndim:
            continue
        with quietly():
            try:
                for affine in around(calls, points[0], place):
                    if found := _of_argument(calls, points, place, affine):
                        return found
                    if pointwise is None and (affine.gain, affine.bias) != (None, None):
                        pointwise = _pointwise(calls, points, place, affine)
            except UsageError:  # the forward function refuses a gain of 0 or the like
                continue
    return pointwise


def _names(calls: Calls, affine: Affine) -> dict[str, Any]:
    return {
        "gain": "" if affine.gain is None else calls.names[affine.gain],
        "bias": "" if affine.bias is None else calls.names[affine.bias],
        "plus_one": affine.plus_one,
        "activation": affine.activation,
    }


def _of_argument(calls: Calls, points: Sequence[Point], place: int, affine: Affine) -> tuple[Core, list[Parts]] | None:
    cores = [affine.core(calls, point.inputs) for point in points]
    values = [point.inputs[place] for point in points]
    for groups in partitions(values[0].shape):
        known = {"argument": calls.names[place], "groups": groups, **_names(calls, affine)}
        if found := _softmax(values, cores, groups, known) or _norm(values, cores, groups, known):
            return found[0], _parts(points, found[1], affine)
    return None


def _pointwise(calls: Calls, points: Sequence[Point], place: int, affine: Affine) -> tuple[Core, list[Parts]]:
    """Return a core of which only gain, bias and activation are known."""
    parts = [{"x": point.inputs[place], "h": affine.core(calls, point.inputs)} for point in points]
    groups = Groups(points[0].output.shape, (), "no axes")
    core = Core("other", calls.names[place], groups, **_names(calls, affine))
    return core, _parts(points, parts, affine)


def _parts(points: Sequence[Point], values: Sequence[dict[str, Array]], affine: Affine) -> list[Parts]:
    return [
        Parts(value, affine.factor(point.inputs, point.output.shape), affine.slope(point.output))
        for point, value in zip(points, values, strict=True)
    ]


def _same(one: Array, other: Array, by: Array) -> bool:
    return bool(np.abs(one - other).max() <= SAME * max(float(np.abs(by).max()), 1e-300))


def _softmax(
    values: Sequence[Array], cores: Sequence[Array], groups: Groups, known: Mapping[str, Any]
) -> tuple[Core, list[dict[str, Array]]] | None:
    """Return the parts of a softmax over the groups, or of its logarithm."""
    parts = []
    for value, core in zip(values, cores, strict=True):
        high = np.broadcast_to(value.reshape(groups.shape).max(groups.axes, keepdims=True), groups.shape).reshape(
            value.shape
        )
        raised = np.exp(value - high)
        soft = raised / (groups.mean(raised) * groups.count)
        parts.append({"x": value, "xc": value, "h": core, "r": np.ones_like(value), "softmax": soft})
    for kind, read in (("softmax", lambda soft: soft), ("log-softmax", np.log)):
        if all(_same(core, read(part["softmax"]), core) for core, part in zip(cores, parts, strict=True)):
            return Core(kind, **known), parts
    return None


def _norm(
    values: Sequence[Array], cores: Sequence[Array], groups: Groups, known: Mapping[str, Any]
) -> tuple[Core, list[dict[str, Array]]] | None:
    """Return the parts of a normalization of the groups, centred or not."""
    for centred in (True, False):
        parts = []
        for value, core in zip(values, cores, strict=True):
            reduced = value - groups.mean(value) if centred else value
            size = groups.mean(reduced**2)
            r = groups.mean(core * reduced) / size
            if not np.isfinite(r).all() or not _same(core, r * reduced, core):
                break
            parts.append({"x": value, "xc": reduced, "h": core, "r": r, "size": size})
        if len(parts) < len(values):
            continue
        varies = max(float(np.ptp(np.concatenate([part["r"].reshape(-1) for part in parts]))), 0.0)
        if not centred and varies <= 1e-6 * float(np.abs(parts[0]["r"]).max()):
            continue  # the core is the argument itself
        ratio, eps, inside = _relation(parts)
        return Core("norm", centred=centred, ratio=ratio, eps=eps, inside=inside, **known), parts
    return None


def _relation(parts: Sequence[Mapping[str, Array]]) -> tuple[float, float, bool]:
    """Return how 1 over the deviation depends on the mean square: ratio, eps, and whether eps is inside the root."""
    size = np.concatenate([part["size"].reshape(-1) for part in parts])
    r = np.concatenate([part["r"].reshape(-1) for part in parts])
    if (r <= 0).any() or np.ptp(r) <= 1e-9 * r.max():
        return float("nan"), 0.0, True
    for inside, across, up in ((True, size, 1 / r**2), (False, np.sqrt(size), 1 / r)):
        design = np.stack([across, np.ones_like(across)], 1) / up[:, None]
        (ratio, eps), *_ = np.linalg.lstsq(design, np.ones_like(up), rcond=None)
        if np.abs(design @ [ratio, eps] - 1).max() < 1e-10 and ratio > 0:
            return float(ratio), float(eps) if abs(eps) > 1e-11 * float(up.mean()) else 0.0, inside
    return float("nan"), 0.0, True
