"""Find out from numbers what a forward function computes: a gain, a bias, and a normalization between them.

Nothing of the user's code is read. A bias moves the output by as much as it is moved; a gain multiplies what is left.
With gain 1 and bias 0 the output is the core. A core that is proportional to the input (or to the centred input) within
groups of entries is a normalization of these groups.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from normscope._errors import UsageError
from normscope.verifying.calls import Array, Calls
from normscope.verifying.differences import quietly
from normscope.verifying.samples import Point

_SAME = 1e-9
_MOST_GROUPS_OF_CHANNELS = 16


@dataclass(frozen=True)
class Groups:
    """A partition of the entries of an array: it is viewed in a shape, and entries along some axes are a group.

    Attributes:
        shape: The shape in which the array is viewed.
        axes: The axes of the view along which a group runs.
        words: The groups in words.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    words: str

    @property
    def count(self) -> int:
        """Entries in a group."""
        return int(np.prod([self.shape[axis] for axis in self.axes]))

    def mean(self, value: Array) -> Array:
        """Return the mean over each group, at each entry."""
        viewed = value.reshape(self.shape)
        return np.broadcast_to(viewed.mean(self.axes, keepdims=True), self.shape).reshape(value.shape)


@dataclass(frozen=True)
class Core:
    """What a forward function computes, but for gain and bias.

    Attributes:
        kind: ``"norm"``, ``"softmax"`` or ``"log-softmax"``.
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


@dataclass(frozen=True)
class Parts:
    """The parts of a core at one point, each of the shape of the input.

    Attributes:
        values: By name: ``"x"``, ``"xc"`` (centred, or ``x`` itself), ``"h"`` (the core), ``"r"`` (1 over the
            deviation), ``"softmax"``, ``"size"`` (mean square of ``xc`` over the group).
        gain: What multiplies the core.
    """

    values: dict[str, Array] = field(default_factory=dict)
    gain: Array = field(default_factory=lambda: np.ones(()))


def recognise(calls: Calls, points: Sequence[Point]) -> tuple[Core, list[Parts]] | None:
    """Return what the forward function computes, and its parts at each point; None if it is nothing known."""
    for place in calls.differentiable:
        if points[0].inputs[place].shape != points[0].output.shape or not points[0].output.ndim:
            continue
        with quietly():
            try:
                found = _of_argument(calls, points, place)
            except UsageError:  # the forward function refuses a gain of 0 or the like
                found = None
        if found is not None:
            return found
    return None


def _of_argument(calls: Calls, points: Sequence[Point], place: int) -> tuple[Core, list[Parts]] | None:
    gain, bias, plus_one = _gain_and_bias(calls, points[0], place)
    cores, gains = [], []
    for point in points:
        inputs = list(point.inputs)
        if bias is not None:
            inputs[bias] = np.zeros_like(inputs[bias])
        multiplied: Array = np.ones(())
        if gain is not None:
            multiplied = point.inputs[gain] + plus_one
            inputs[gain] = np.ones_like(inputs[gain]) - plus_one
        cores.append(calls.output(inputs))
        gains.append(np.broadcast_to(multiplied, point.output.shape))
    names = {"gain": "" if gain is None else calls.names[gain], "bias": "" if bias is None else calls.names[bias]}
    values = [point.inputs[place] for point in points]
    for groups in _partitions(values[0].shape):
        known = {"argument": calls.names[place], "groups": groups, "plus_one": plus_one, **names}
        found = _softmax(values, cores, groups, known) or _norm(values, cores, groups, known)
        if found is not None:
            core, parts = found
            return core, [Parts(part, factor) for part, factor in zip(parts, gains, strict=True)]
    return None


def _gain_and_bias(calls: Calls, point: Point, place: int) -> tuple[int | None, int | None, bool]:
    """Return the places of the gain and the bias, and whether 1 is added to the gain."""
    chance = np.random.default_rng(0)
    bias, gain, plus_one = None, None, False

    def output(**changed: Array) -> Array:
        return calls.output([changed.get(f"at{at}", value) for at, value in enumerate(point.inputs)])

    others = [at for at in calls.differentiable if at != place and _fits(point.inputs[at], point.output)]
    scale = float(np.abs(point.output).max())
    for at in others:
        step = chance.standard_normal(point.inputs[at].shape)
        moved = output(**{f"at{at}": point.inputs[at] + step}) - point.output
        if bias is None and np.abs(moved - step).max() <= _SAME * max(scale, 1.0):
            bias = at
    fixed = {f"at{bias}": np.zeros_like(point.inputs[bias])} if bias is not None else {}
    for at in others:
        if at == bias:
            continue
        factor = 1 + chance.random(point.inputs[at].shape)
        one, scaled, zero = (
            output(**fixed, **{f"at{at}": value})
            for value in (point.inputs[at], factor * point.inputs[at], np.zeros_like(point.inputs[at]))
        )
        if not np.isfinite(zero).all() or np.abs(one - zero).max() <= _SAME * scale:
            continue
        if np.abs((scaled - zero) - factor * (one - zero)).max() > _SAME * scale:
            continue
        unit = output(**fixed, **{f"at{at}": np.ones_like(point.inputs[at])})
        if np.abs(zero).max() <= _SAME * scale:
            gain, plus_one = at, False
        elif np.abs(unit - 2 * zero).max() <= _SAME * scale:
            gain, plus_one = at, True
    return gain, bias, plus_one


def _fits(value: Array, output: Array) -> bool:
    try:
        return np.broadcast_shapes(value.shape, output.shape) == output.shape
    except ValueError:
        return False


def _partitions(shape: tuple[int, ...]) -> Iterator[Groups]:
    """Yield the ways to group the entries of an array, the largest groups first."""
    found = [Groups(shape, axes, axes_words(axes, len(shape))) for axes in subsets(len(shape))]
    for axis in {1, len(shape) - 1} if len(shape) > 1 else ():
        size = shape[axis]
        for many in range(2, min(size, _MOST_GROUPS_OF_CHANNELS + 1)):
            if size % many:
                continue
            view = (*shape[:axis], many, size // many, *shape[axis + 1 :])
            inner = axis + 1
            rest = tuple(range(inner + 1, len(view)))
            runs = dict.fromkeys(((inner,), (inner, *rest), (0, inner, *rest)))
            words = f"each of {many} groups along axis {axis}"
            found += [Groups(view, axes, words) for axes in runs]
    yield from sorted((each for each in found if each.count > 1), key=lambda each: -each.count)


def subsets(count: int) -> list[tuple[int, ...]]:
    """Return the subsets of axes that are not empty."""
    return [each for size in range(1, count + 1) for each in itertools.combinations(range(count), size)]


def axes_words(axes: tuple[int, ...], count: int) -> str:
    """Return axes in words."""
    if len(axes) == count and count > 1:
        return "all axes"
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


def _same(one: Array, other: Array, by: Array) -> bool:
    return bool(np.abs(one - other).max() <= _SAME * max(float(np.abs(by).max()), 1e-300))


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
    if (r <= 0).any():
        return float("nan"), 0.0, True
    for inside, across, up in ((True, size, 1 / r**2), (False, np.sqrt(size), 1 / r)):
        design = np.stack([across, np.ones_like(across)], 1) / up[:, None]
        (ratio, eps), *_ = np.linalg.lstsq(design, np.ones_like(up), rcond=None)
        if np.abs(design @ [ratio, eps] - 1).max() < 1e-10 and ratio > 0:
            return float(ratio), float(eps) if abs(eps) > 1e-11 * float(up.mean()) else 0.0, inside
    return float("nan"), 0.0, True
