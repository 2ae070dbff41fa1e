"""Turn the norms of a model into norms of another kind, keeping what was learned.

**What it does.** Every norm that is known exactly (torch's and this library's batch, synchronised batch, group, layer,
instance and RMS norms) is replaced wherever it hangs. A module that hangs in several places stays one module.

**What is kept.** Gain and shift: *the same* ``Parameter`` objects, so ties between layers and the optimizer's hold on
them survive (converters that build a fresh layer and forget to copy lose every learned gain); ``eps``; momentum and
running statistics where both kinds have them (the same buffers); dtype, device, training mode, ``requires_grad``,
forward hooks and their handles; a freeze, if the new norm has running statistics; and from one batch norm of this
library to another every option that applies (the activation, ``accumulate``, ``on_bad_update`` ...). The kind names the
statistics: ``"batch"`` of a ghost norm is one of the whole batch. What is dropped is said.

**What is refused, with the reason in the report.** Subclasses, parametrised and lazy norms, for their forward may be
anything (``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` silently drops what a subclass adds); a gain that differs by
position where the new norm has one per channel; a fused activation that the new norm has not; with an ``example`` that
shows it, a norm that is called with a mask where the new one takes none; norms inside
``torch.nn.TransformerEncoderLayer``, whose fast path reads their weights without calling them; and every case where the
layout of the input decides and is not known:

- ``LayerNorm(C)`` and RMS norm act on the *last* axis, the others on the second. For ``(N, C)`` that is the same; for
  ``(N, L, C)`` the new norm is wrapped so that it sees ``(N, C, L)``. Which it is, only an ``example`` tells.
- A group or synchronised norm does not say how many dimensions its input has; ``example`` or ``dims`` does.
- ``BatchNorm1d`` takes ``(N, C)`` and ``(N, C, L)``. Instance norm of ``(N, C)`` has one value per statistic, and
  torch would read it as one unbatched ``(C, L)``: ``example`` or ``dims=1`` must show that there is a length.

**What becomes what.** Layer norm of a map ``(N, C, *)`` is ``GroupNorm(1, C)``: one mean and variance a sample, over
all channels and positions. RMS norm of a map is this room's :class:`RMSNorm` over the same set, with a shift. Groups
that do not divide the channels are replaced by the largest divisor below, and the report says which.

The function of the model changes, except between batch norms. New running statistics start at 0 and 1:
``surgery.recalibrate`` sets them.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from normscope import layers
from normscope._errors import UsageError
from normscope.layers.options import NAMES
from normscope.modules.call import run, set_mode
from normscope.modules.state import traceless, transaction
from normscope.surgery._modules import ChannelAffine, ChannelsLast, RMSNorm
from normscope.surgery._options import hand_over, inherited, not_in
from normscope.surgery._report import Change, Report, Skip
from normscope.surgery._sites import BATCH, INSTANCE, OURS, Only, Site, keep_hooks, norms, why_opaque
from normscope.surgery.freeze import is_frozen, refreeze

Builder = Callable[[nn.Module], nn.Module | None]

KINDS = ("batch", "ghost", "renorm", "sync", "torch-batch", "group", "layer", "instance", "rms", "affine", "none")
_OURS = {1: layers.BatchNorm1d, 2: layers.BatchNorm2d, 3: layers.BatchNorm3d}
_TORCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_MISSING = object()
_STATISTICS = ("batch", "ghost", "renorm", "sync")  # of this library's batch norms


class _RefusedError(Exception):
    """This norm cannot be converted; the message is the reason."""


def convert(
    model: nn.Module,
    to: str | Builder = "batch",
    *,
    only: Only = None,
    example: Any = _MISSING,
    dims: int | None = None,
    groups: int = 32,
    **options: Any,
) -> Report:
    """Turn norms into norms of another kind.

    Args:
        model: The model, changed in place.
        to: ``"batch"`` (this library's), ``"ghost"`` (it with ``group_size``), ``"renorm"``, ``"sync"`` (torch's on a
            GPU unless the old norm or an option is this library's; else this library's), ``"torch-batch"``,
            ``"group"``, ``"layer"``, ``"instance"``, ``"rms"``, ``"affine"`` (gain and shift without statistics),
            ``"none"`` (the identity; gain and shift are lost), or a function of the old norm that returns the new one,
            or None to leave it.
        only: Which norms: None for all; a predicate of path and module; or names, of which ``*`` stands for anything.
        example: Input to the model (one, a tuple of arguments, or a mapping of keyword arguments) that shows what
            shapes the norms see. Needed only where the old norm does not say; the model is run once, without a trace.
        dims: Number of positional dimensions of the input (1 for ``(N, C, L)``, 2 for images, 3 for volumes), where
            the old norm does not say and there is no ``example``.
        groups: For ``"group"``.
        **options: Passed to the new norm (``eps``, ``momentum``, ``track_running_stats``, ``affine``, and what this
            library's layers offer beyond torch's, such as ``statistics`` and ``group_size``).

    Returns:
        What was converted, and what was skipped and why.

    Raises:
        UsageError: No such kind, a name in ``only`` that fits no norm, or an option that the new norm does not have.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> convert(model, to="group", groups=4)["1"].what
        'BatchNorm2d -> GroupNorm(4, 8)'
    """
    if isinstance(to, str) and to not in KINDS:
        raise UsageError(f"no norm is called {to!r}: one of {', '.join(KINDS)}, or a function of the old norm")
    done: list[Change] = []
    skipped: list[Skip] = []
    with transaction(model):
        chosen = norms(model, only)
        near = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), None)
        ranks, masked = _ranks(model, chosen, example) if example is not _MISSING else ({}, set())
        for site in chosen:
            try:
                _why_not(site, to)
                if site.path in masked and to not in _STATISTICS and not callable(to):
                    raise _RefusedError(
                        "is called with a mask, lengths or a population, which the new norm takes none of"
                    )
                new, detail = _build(site.module, to, ranks.get(site.path), dims, groups, options, near)
                details = [detail, *_carry(site.module, new, inserted=not callable(to))]
            except _RefusedError as refusal:
                skipped.append(Skip(site.path, str(refusal)))
                continue
            site.replace(new)
            what = f"{type(site.module).__name__} -> {_describe(new)}"
            done.append(Change(site.path, what, "; ".join(filter(None, details))))
    return Report(model, tuple(done), tuple(skipped))


def _why_not(site: Site, to: str | Builder) -> None:
    if not site.slots:
        raise _RefusedError("is the model itself and cannot be replaced in place: put it into a Sequential")
    if callable(to):
        return
    if opaque := why_opaque(site.module, activation=to in _STATISTICS):
        raise _RefusedError(opaque)
    if any(isinstance(parent, nn.TransformerEncoderLayer) for parent, _ in site.slots):
        raise _RefusedError(
            "torch's TransformerEncoderLayer reads its norms' weights without calling them (its fast path)"
        )


def _ranks(model: nn.Module, chosen: list[Site], example: Any) -> tuple[dict[str, set[int]], set[str]]:
    """Run the model once; return how many axes each norm's input has, and which norms are given a mask too."""
    masked: set[str] = set()
    seen: dict[str, set[int]] = {site.path: set() for site in chosen}
    with traceless(model):
        set_mode(model, False)
        for site in chosen:

            def look(_: nn.Module, args: tuple[Any, ...], kwargs: Any, path: str = site.path) -> None:
                given = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
                seen[path].update(x.ndim for x in given[:1])
                if len(given) > 1:
                    masked.add(path)

            site.module.register_forward_pre_hook(look, with_kwargs=True)
        run(model, example)
    return seen, masked


def _build(
    old: Any,
    to: str | Builder,
    ranks: set[int] | None,
    dims: int | None,
    groups: int,
    options: dict[str, Any],
    near: Any,
) -> tuple[nn.Module, str]:
    if callable(to):
        new = to(old)
        if new is None or new is old:
            raise _RefusedError("the given function left it")
        return new, ""
    weight, bias = (getattr(old, name, None) for name in ("weight", "bias"))
    if to == "none":
        lost = weight is not None or bias is not None
        return nn.Identity(), "gain and shift are lost: to='affine' keeps them" if lost else ""
    if ranks is not None and len(ranks) > 1:
        raise _RefusedError(
            f"sees inputs of {' and '.join(map(str, sorted(ranks)))} axes: no one norm takes all of them"
        )
    if ranks is not None and not ranks:
        raise _RefusedError("was not called with the example: its input's layout is not known")
    rank = next(iter(ranks)) if ranks else None
    last = isinstance(old, (nn.LayerNorm, nn.RMSNorm))
    if last:
        channels, weight, bias, last = _of_last_axes(old, to, rank)
    else:
        channels = old.num_channels if isinstance(old, nn.GroupNorm) else old.num_features
        declared = {**BATCH, **INSTANCE}.get(type(old))
        if rank is None and dims is not None:
            rank = dims + 2
        elif rank is None and declared is not None:
            rank = declared + 2 if declared > 1 or isinstance(old, nn.modules.instancenorm._InstanceNorm) else None
        if isinstance(old, nn.modules.instancenorm._InstanceNorm) and rank == (declared or 0) + 1:
            raise _RefusedError("sees one unbatched sample: other norms would take its channels for samples")
    eps = options.get("eps", getattr(old, "eps", None))
    if eps is None:  # torch's RMSNorm: the machine precision of its input, which is taken to be that of its gain
        eps = torch.finfo(torch.get_default_dtype() if weight is None else weight.dtype).eps
    settings = {"eps": eps, **options}
    new, detail = _make(to, old, channels, rank, groups, settings, weight, bias, -1 if last else 1, near)
    if _needs_wrap(new, last, rank):
        return ChannelsLast(new), f"{detail}; on the last axis".strip("; ")
    return new, detail


def _needs_wrap(new: nn.Module, last: bool, rank: int | None) -> bool:
    return last and rank != 2 and not isinstance(new, (ChannelAffine, nn.LayerNorm))


def _of_last_axes(old: Any, to: str, rank: int | None) -> tuple[int, Any, Any, bool]:
    """Return channels, gain, shift, and whether channels are last, of a norm over the last axes."""
    shape = tuple(old.normalized_shape)
    weight, bias = old.weight, getattr(old, "bias", None)
    if len(shape) == 1:
        if to == "layer" and isinstance(old, nn.LayerNorm):
            raise _RefusedError("is a layer norm already")
        if rank is None and to not in ("rms", "affine", "layer"):
            raise _RefusedError("acts on the last axis, and where the channels are is not known: give an example")
        return shape[0], weight, bias, True
    if rank != len(shape) + 1:
        raise _RefusedError(
            f"acts on the last {len(shape)} axes {shape}; give an example that shows a batch of just these"
        )
    reduced = []
    for values in (weight, bias):
        if values is not None:
            flat = values.detach().flatten(1)
            if not torch.equal(flat, flat[:, :1].expand_as(flat)):
                raise _RefusedError("its gain or shift differs by position; the new norm has one per channel")
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
        return RMSNorm(weight, bias, axis, eps=_only_eps(to, settings)), ""
    if to == "layer" and axis == -1:
        kind = nn.LayerNorm
        settings = {"elementwise_affine": affine, **settings}
    elif to in ("group", "layer"):
        taken, detail = _groups(channels, groups, rank) if to == "group" else (1, "")
        if channels == 1 and rank in (None, 2):
            raise _RefusedError("has one channel and, it may be, no positions: one value per statistic")
        kind, arguments = nn.GroupNorm, (taken, channels)  # type: ignore[assignment]
        if type(old) is nn.GroupNorm and old.num_groups == taken and set(settings) == {"eps"}:
            raise _RefusedError("is such a group norm already")
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


def _groups(channels: int, groups: int, rank: int | None) -> tuple[int, str]:
    """Return the number of groups that is taken, and what is to be said of it.

    Where the input may be ``(N, C)`` a group of one channel would be one value, which a norm turns into 0.
    """
    if groups < 1:
        raise UsageError(f"groups is a number of groups: give at least 1, not {groups}")
    most = groups if rank is not None and rank > 2 else max(1, min(groups, channels // 2))
    taken = max(d for d in range(1, channels + 1) if channels % d == 0 and d <= most)
    return taken, "" if taken == groups else f"{taken} groups, for {groups} do not fit {channels} channels"


def _only_eps(to: str, settings: dict[str, Any]) -> float:
    if set(settings) - {"eps"}:
        raise UsageError(f"{to!r} takes eps and no other option, not {', '.join(sorted(set(settings) - {'eps'}))}")
    return float(settings["eps"])


def _kind(to: str, old: nn.Module, rank: int | None, anchor: Any, asked: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the class of a batch or instance norm for inputs of ``rank`` axes, and arguments it needs beside."""
    own = type(old) in OURS or any(name in NAMES and name != "process_group" for name in asked)
    if to == "sync" and anchor is not None and anchor.is_cuda and not own:
        if type(old) is nn.SyncBatchNorm:
            raise _RefusedError("is a synchronised batch norm already")
        return nn.SyncBatchNorm, {}
    declared = BATCH.get(type(old))
    if rank is None and declared is None:
        raise _RefusedError(f"{type(old).__name__} does not say how many axes its input has: give an example or dims")
    number = declared or 1 if rank is None else max(1, rank - 2)
    if number > 3:
        raise _RefusedError(f"there is no {to} norm for inputs of {rank} axes")
    if to == "instance":
        if rank is None or rank == 2:
            why = "one value per statistic" if rank == 2 else "its input may be (N, C): give an example or dims=1"
            raise _RefusedError(f"instance norm needs positions: {why}")
        return _INSTANCE[number], {}
    return (_OURS[number], {"statistics": to}) if to in _STATISTICS else (_TORCH[number], {})


def _carry(old: nn.Module, new: nn.Module, *, inserted: bool) -> list[str]:
    """Give ``new`` the running statistics, mode, hooks and freeze of ``old``; return what is to be said of it."""
    details: list[str] = []
    inner = new.norm if isinstance(new, ChannelsLast) else new
    had = getattr(old, "running_mean", None) is not None
    has = getattr(inner, "running_mean", None) is not None
    if inserted:
        if type(inner) is type(old) and repr(inner) == repr(old).replace(", frozen", ""):
            raise _RefusedError(f"is such a {type(old).__name__} already")
        if had and has:
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                hand_over(old, inner, name)
            if getattr(inner, "accumulate", 1) == getattr(old, "accumulate", None):
                hand_over(old, inner, "pending")
            if type(old) not in BATCH or type(inner) not in BATCH:
                details.append("running statistics kept, though batch and instance norm mean different things by them")
        elif has:
            details.append("new running statistics, mean 0 and variance 1: recalibrate")
        elif had:
            details.append("running statistics dropped")
        if type(old) in INSTANCE and type(new) in BATCH:
            details.append("its input is taken to be batched")
        details.append(not_in(old, inner))
        keep_hooks(old, new)
    new.train(old.training)
    if is_frozen(old):
        if has:
            refreeze(old, inner)
            details.append("still frozen")
        else:
            details.append("no longer frozen: the new norm has no running statistics")
    return details


def _describe(new: nn.Module) -> str:
    inner = new.norm if isinstance(new, ChannelsLast) else new
    return (
        f"{type(new).__name__}({inner})"
        if inner is not new
        else type(new).__name__ + (f"({new.num_groups}, {new.num_channels})" if isinstance(new, nn.GroupNorm) else "")
    )
