"""The norm that takes the place of another: its kind, its options, gain and shift."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from normscope import layers
from normscope._errors import UsageError
from normscope.layers.options import NAMES
from normscope.records.numbers import counted
from normscope.surgery._modules import ChannelAffine, ChannelsFirst, ChannelsLast, RMSNorm
from normscope.surgery._options import inherited
from normscope.surgery._sites import BATCH, INSTANCE, OURS

Builder = Callable[[nn.Module], nn.Module | None]

_ANY_LAYOUT = ("rms", "affine", "layer", "dyt")  # that act on the last axis as well as on the second
STATISTICS = ("batch", "ghost", "renorm", "sync")  # of this library's batch norms
_OURS = {1: layers.BatchNorm1d, 2: layers.BatchNorm2d, 3: layers.BatchNorm3d}
_TORCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


FEWEST, MOST = 8, 32  # values of a group, and groups, where they are chosen


class RefusedError(Exception):
    """This norm cannot be converted; the message is the reason."""


class AlreadyError(RefusedError):
    """The norm is of this kind already."""


def build(
    old: Any,
    to: str | Builder,
    ranks: set[int] | None,
    dims: int | None,
    groups: int | None,
    options: dict[str, Any],
    near: Any,
    size: int | None = None,
) -> tuple[nn.Module, str]:
    """Make the norm that takes the place of ``old``.

    Args:
        old: The norm.
        to: The kind of the new norm, or a function of the old one; see ``convert``.
        ranks: How many axes the inputs of the old norm were seen to have; None if it was not looked at.
        dims: Number of positional dimensions, where neither the old norm nor ``ranks`` says.
        groups: Number of groups of a group norm; None to choose it.
        options: Passed to the new norm.
        near: A tensor of the model whose dtype and device are taken where the old norm has none.
        size: Fewest values of a sample that the old norm was seen to be given; None if it was not looked at.

    Returns:
        The new norm, and what is to be said of it.

    Raises:
        RefusedError: There is no such norm for this place.
        UsageError: An option that the new norm does not have.
    """
    if callable(to):
        new = to(old)
        if new is None or new is old:
            raise RefusedError("the given function left it")
        return new, ""
    if to == "none":
        lost = any(getattr(old, name, None) is not None for name in ("weight", "bias"))
        return nn.Identity(), "gain and shift are lost: to='affine' keeps them" if lost else ""
    channels, weight, bias, last, rank = _layout(old, to, ranks, dims)
    _refuse_signs(to, channels, None if size is None else size // channels if not last else 1, last=last)
    eps = options.get("eps", getattr(old, "eps", None))
    if eps is None:  # torch's RMSNorm: the machine precision of its input, which is taken to be that of its gain
        eps = torch.finfo(torch.get_default_dtype() if weight is None else weight.dtype).eps
    settings = dict(options) if to == "dyt" else {"eps": eps, **options}
    taken, detail = _groups(channels, groups, rank, size) if to == "group" else (1, "")
    new, more = _make(to, old, channels, rank, taken, settings, weight, bias, -1 if last else 1, near)
    detail = detail or more
    if isinstance(new, layers.DynamicTanh):
        return new if last or rank == 2 else ChannelsFirst(new), detail
    if _needs_wrap(new, last, rank):
        return ChannelsLast(new), detail
    return new, detail


def _layout(old: Any, to: str, ranks: set[int] | None, dims: int | None) -> tuple[int, Any, Any, bool, int | None]:
    """Return channels, gain, shift, whether channels are last, and how many axes the input has, if that is known."""
    if ranks is not None and len(ranks) > 1:
        axes = " and ".join(map(str, sorted(ranks)))
        raise RefusedError(f"sees inputs of {axes} axes: no one norm takes all of them")
    if ranks is not None and not ranks:
        raise RefusedError("was not called with the example: its input's layout is not known")
    rank = next(iter(ranks)) if ranks else None
    if isinstance(old, (nn.LayerNorm, nn.RMSNorm)):
        return *_of_last_axes(old, to, rank), rank
    if isinstance(old, RMSNorm):
        channels, last = _of_rms(old, to, rank)
        return channels, old.weight, old.bias, last, rank
    channels = old.num_channels if isinstance(old, nn.GroupNorm) else old.num_features
    return channels, old.weight, old.bias, False, _axes(old, rank, dims)


def _axes(old: Any, rank: int | None, dims: int | None) -> int | None:
    """Return how many axes the input of a norm over the second axis has, or None where nothing says so."""
    instance = isinstance(old, nn.modules.instancenorm._InstanceNorm)
    declared = {**BATCH, **INSTANCE}.get(type(old))
    if rank is None and dims is not None:
        rank = dims + 2
    elif rank is None and declared is not None and (declared > 1 or instance):
        rank = declared + 2
    if instance and rank == (declared or 0) + 1:
        raise RefusedError("sees one unbatched sample: other norms would take its channels for samples")
    return rank


def _needs_wrap(new: nn.Module, last: bool, rank: int | None) -> bool:
    return last and rank != 2 and not isinstance(new, (ChannelAffine, nn.LayerNorm))


def _of_rms(old: RMSNorm, to: str, rank: int | None) -> tuple[int, bool]:
    """Return channels, and whether they are last, of this room's RMS norm."""
    vector = old.weight if old.weight is not None else old.bias
    if vector is None:
        raise RefusedError("does not say how many channels it has")
    if old.axis == -1 and rank is None and to not in _ANY_LAYOUT:
        raise RefusedError("acts on the last axis, and where the channels are is not known: give an example")
    return vector.numel(), old.axis == -1


def _of_last_axes(old: Any, to: str, rank: int | None) -> tuple[int, Any, Any, bool]:
    """Return channels, gain, shift, and whether channels are last, of a norm over the last axes."""
    shape = tuple(old.normalized_shape)
    weight, bias = old.weight, getattr(old, "bias", None)
    if len(shape) == 1:
        if rank is None and to not in _ANY_LAYOUT:
            raise RefusedError("acts on the last axis, and where the channels are is not known: give an example")
        return shape[0], weight, bias, True
    if rank != len(shape) + 1:
        raise RefusedError(
            f"acts on the last {len(shape)} axes {shape}; give an example that shows a batch of just these"
        )
    reduced = []
    for values in (weight, bias):
        if values is not None:
            flat = values.detach().flatten(1)
            if not torch.equal(flat, flat[:, :1].expand_as(flat)):
                raise RefusedError("its gain or shift differs by position; the new norm has one per channel")
            values = nn.Parameter(flat[:, 0].clone(), values.requires_grad)
        reduced.append(values)
    return shape[0], reduced[0], reduced[1], False


def _make(
    to: str, old: Any, channels: int, rank: int | None, groups: int, settings: dict[str, Any], weight: Any,
    bias: Any, axis: int, near: Any,
) -> tuple[nn.Module, str]:  # fmt: skip
    affine = settings.pop("affine", weight is not None or bias is not None)
    anchor = next((t for t in (weight, bias, *old.buffers(), near) if t is not None and t.is_floating_point()), None)
    place: dict[str, Any] = {} if anchor is None else {"dtype": anchor.dtype, "device": anchor.device}
    detail, kind, arguments = "", cast(Any, None), (channels,)
    if to in ("rms", "affine"):
        if affine and weight is None:
            weight = nn.Parameter(torch.ones(channels, **place))
        if to == "affine":
            return ChannelAffine(weight, bias, axis), ""
        eps = _only_eps(to, settings)
        if isinstance(old, (nn.RMSNorm, RMSNorm)) and getattr(old, "axis", -1) == axis and eps == old.eps:
            raise AlreadyError("is such an RMS norm already")
        return RMSNorm(weight, bias, axis, eps=eps), ""
    if to == "dyt":
        kind, detail = layers.DynamicTanh, "alpha is a new parameter: give it to the optimizer"
        settings = {"elementwise_affine": affine, **settings}
    elif to == "layer" and axis == -1:
        kind = nn.LayerNorm
        settings = {"elementwise_affine": affine, **settings}
    elif to in ("group", "layer"):
        if channels == 1 and rank in (None, 2):
            raise RefusedError("has one channel and, it may be, no positions: one value per statistic")
        kind, arguments = nn.GroupNorm, (groups, channels)  # type: ignore[assignment]
        if type(old) is nn.GroupNorm and (old.num_groups, {"eps": old.eps}) == (groups, settings):
            raise AlreadyError("is such a group norm already")
        settings = {"affine": affine, **settings}
    else:
        kind, extra = _kind(to, old, rank, anchor, settings)
        common = {"momentum": getattr(old, "momentum", 0.1), "track_running_stats": to != "instance"}
        if to != "instance" and isinstance(old, nn.modules.batchnorm._BatchNorm):
            common["track_running_stats"] = old.track_running_stats
        if kind in OURS:
            options, detail = inherited(old, {**extra, **settings})
            extra = {**options, **extra}
        settings = {"affine": affine, **common, **extra, **settings}
    try:
        new = kind(*arguments, **settings, **place)
    except TypeError as error:
        raise UsageError(f"{kind.__name__} takes no such option: {error}") from error
    for name, kept in (("weight", weight), ("bias", bias)):
        if kept is not None:
            new._parameters[name] = kept
        elif affine and weight is not None and name == "bias":
            new.register_parameter("bias", None)
    return new, detail


def _groups(channels: int, groups: int | None, rank: int | None, size: int | None) -> tuple[int, str]:
    """Return the number of groups that is taken, and what is to be said of it.

    A norm of few values keeps little but their order: two values become -1 and 1, a sign function. Where the number of
    positions is not known, a chosen number of groups rests on the channels alone, and one that was asked for is taken.

    Args:
        channels: Number of channels.
        groups: The number that was asked for; None to choose it, and then no channel is a group of its own.
        rank: Axes of the input; None if that is not known, and it may be ``(N, C)``.
        size: Values of a sample; None if that is not known.
    """
    positions = size // channels if size is not None else None if rank is not None and rank > 2 else 1
    if groups is not None and groups < 1:
        raise UsageError(f"groups is a number of groups: give at least 1, not {groups}")
    if positions is not None and channels * positions < FEWEST:
        few = counted(channels * positions, "value")
        unseen = "" if size is not None or rank == 2 else ", if its input is (N, C): give example= if it is not"
        raise RefusedError(
            f"has {few} a sample{unseen}: a group norm of fewer than {FEWEST} is close to a sign function"
        )
    divisors = [d for d in range(1, channels + 1) if channels % d == 0 and d <= (MOST if groups is None else groups)]

    def is_enough(number: int) -> bool:
        if groups is not None:
            return positions is None or channels // number * positions >= FEWEST
        return channels // number >= (2 if positions is not None else FEWEST) and (
            channels // number * (positions or 1) >= FEWEST
        )

    taken = max((d for d in divisors if is_enough(d)), default=1)
    if groups is None or taken == groups:
        return taken, ""
    why = f"do not fit {channels} channels" if taken == divisors[-1] else f"leave a group fewer than {FEWEST} values"
    return taken, f"{counted(taken, 'group')}, for {groups} {why}"


def _refuse_signs(to: str, channels: int, positions: int | None, *, last: bool) -> None:
    """Refuse a norm that leaves no more than signs: of two values and their mean, of one and its mean square.

    Args:
        to: The kind of the new norm.
        channels: Number of channels.
        positions: Number of positions; None if that is not known.
        last: Whether the norm is of each position by itself.
    """
    if to not in ("layer", "rms", "instance") or positions is None:
        return
    values = (positions if not last else None) if to == "instance" else channels * positions
    if values is not None and values < (2 if to == "rms" else 3):
        raise RefusedError(f"has {counted(values, 'value')} a statistic: of so few a norm leaves signs alone")


def _only_eps(to: str, settings: dict[str, Any]) -> float:
    if set(settings) - {"eps"}:
        raise UsageError(f"{to!r} takes eps and no other option, not {', '.join(sorted(set(settings) - {'eps'}))}")
    return float(settings["eps"])


def _kind(to: str, old: nn.Module, rank: int | None, anchor: Any, asked: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the class of a batch or instance norm for inputs of ``rank`` axes, and arguments it needs beside."""
    own = type(old) in OURS or any(name in NAMES and name != "process_group" for name in asked)
    if to == "sync" and anchor is not None and anchor.is_cuda and not own:
        if type(old) is nn.SyncBatchNorm:
            raise AlreadyError("is a synchronised batch norm already")
        return nn.SyncBatchNorm, {}
    declared = BATCH.get(type(old))
    if rank is None and declared is None:
        raise RefusedError(f"{type(old).__name__} does not say how many axes its input has: give an example or dims")
    number = declared or 1 if rank is None else max(1, rank - 2)
    if number > 3:
        raise RefusedError(f"there is no {to} norm for inputs of {rank} axes")
    if to == "instance":
        if rank is None or rank == 2:
            why = "one value per statistic" if rank == 2 else "its input may be (N, C): give an example or dims=1"
            raise RefusedError(f"instance norm needs positions: {why}")
        return _INSTANCE[number], {}
    return (_OURS[number], {"statistics": to}) if to in STATISTICS else (_TORCH[number], {})
