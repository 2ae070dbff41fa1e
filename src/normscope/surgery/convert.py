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

What a subclass of another library computes is tried by ``surgery.make_arm``, which says what it took the class for.

**What becomes what.** Layer norm of a map ``(N, C, *)`` is ``GroupNorm(1, C)``: one mean and variance a sample, over
all channels and positions. RMS norm of a map is this room's :class:`RMSNorm` over the same set, with a shift. Groups
that do not divide the channels, or leave a group fewer than eight values, become the largest number below that does and
leaves enough, and the report says which. A norm of fewer than eight values a sample is refused: a group norm of two
values leaves the sign of their difference, and a gradient that is near 0 almost everywhere.

The function of the model changes, except between batch norms. New running statistics start at 0 and 1:
``surgery.recalibrate`` sets them.
"""

from typing import Any

import torch
from torch import nn

from normscope._errors import UsageError, shown
from normscope.modules.call import run, set_mode
from normscope.modules.state import traceless, transaction
from normscope.surgery._build import STATISTICS, Builder, RefusedError, build
from normscope.surgery._modules import ChannelsLast
from normscope.surgery._options import hand_over, not_in
from normscope.surgery._report import Change, Report, Skip
from normscope.surgery._sites import BATCH, INSTANCE, Only, Site, keep_hooks, norms, why_opaque
from normscope.surgery.freeze import is_frozen, refreeze

KINDS = ("batch", "ghost", "renorm", "sync", "torch-batch", "group", "layer", "instance", "rms", "affine", "none")
_MISSING = object()


def convert(
    model: nn.Module,
    to: str | Builder = "batch",
    *,
    only: Only = None,
    example: Any = _MISSING,
    dims: int | None = None,
    groups: int | None = None,
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
        groups: For ``"group"``; by default the most up to 32 that leave each two channels and eight values (channels,
            where positions are not known).
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
    if not callable(to) and (not isinstance(to, str) or to not in KINDS):
        raise UsageError(f"to is one of {', '.join(KINDS)}, or a function of the old norm, not {shown(to)}")
    done, skipped = list[Change](), list[Skip]()
    with transaction(model):
        chosen = norms(model, only)
        near = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), None)
        ranks, sizes, masked = _looked(model, chosen, example) if example is not _MISSING else ({}, {}, set())
        for site in chosen:
            try:
                _refuse(site, to, masked=site.path in masked)
                size, axes = sizes.get(site.path), ranks.get(site.path)
                new, detail = build(site.module, to, axes, dims, groups, options, near, size)
                details = [detail, *_carry(site.module, new, inserted=not callable(to))]
            except RefusedError as refusal:
                skipped.append(Skip(site.path, str(refusal)))
                continue
            site.replace(new)
            what = f"{type(site.module).__name__} -> {_describe(new)}"
            done.append(Change(site.path, what, "; ".join(filter(None, details))))
    return Report(model, tuple(done), tuple(skipped))


def _refuse(site: Site, to: str | Builder, *, masked: bool) -> None:
    """Refuse norms that cannot be replaced, whatever takes their place."""
    if not site.slots:
        raise RefusedError("is the model itself and cannot be replaced in place: put it into a Sequential")
    if callable(to):
        return
    if opaque := why_opaque(site.module, activation=to in STATISTICS):
        raise RefusedError(opaque)
    if any(isinstance(parent, nn.TransformerEncoderLayer) for parent, _ in site.slots):
        raise RefusedError(
            "torch's TransformerEncoderLayer reads its norms' weights without calling them (its fast path)"
        )
    if masked and to not in STATISTICS:
        raise RefusedError("is called with a mask, lengths or a population, which the new norm takes none of")


def _looked(model: nn.Module, chosen: list[Site], example: Any) -> tuple[dict[str, set[int]], dict[str, int], set[str]]:
    """Run the model once; return the axes of each norm's input, a sample's fewest values, and which get a mask too."""
    masked: set[str] = set()
    sizes: dict[str, int] = {}
    seen: dict[str, set[int]] = {site.path: set() for site in chosen}
    with traceless(model):
        set_mode(model, False)
        for site in chosen:

            def look(_: nn.Module, args: tuple[Any, ...], kwargs: Any, path: str = site.path) -> None:
                given = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
                seen[path].update(x.ndim for x in given[:1])
                for x in given[:1]:
                    sizes[path] = min(x.numel() // max(len(x), 1), sizes.get(path, x.numel()))
                if len(given) > 1:
                    masked.add(path)

            site.module.register_forward_pre_hook(look, with_kwargs=True)
        run(model, example)
    return seen, sizes, masked


def _carry(old: nn.Module, new: nn.Module, *, inserted: bool) -> list[str]:
    """Give ``new`` the running statistics, mode, hooks and freeze of ``old``; return what is to be said of it."""
    details: list[str] = []
    inner = new.norm if isinstance(new, ChannelsLast) else new
    had = getattr(old, "running_mean", None) is not None
    has = getattr(inner, "running_mean", None) is not None
    if inserted:
        if type(inner) is type(old) and repr(inner) == repr(old).replace(", frozen", ""):
            raise RefusedError(f"is such a {type(old).__name__} already")
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
