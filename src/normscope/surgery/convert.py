"""Turn the norms of a model into norms of another kind, keeping what was learned.

**What it does.** Every norm (torch's and this library's batch, synchronised batch, group, layer, instance and RMS
norms, and those of other libraries that are seen to compute the same as one of these) is replaced wherever it hangs. A
module that hangs in several places stays one module. What a norm of another library does after normalizing, an
activation or dropout, stays behind the new one.

**What is kept.** Gain and shift: *the same* ``Parameter`` objects, so ties between layers and the optimizer's hold on
them survive (converters that build a fresh layer and forget to copy lose every learned gain); ``eps``; momentum and
running statistics where both kinds have them (the same buffers); dtype, device, training mode, ``requires_grad``,
forward hooks and their handles; a freeze, if the new norm has running statistics; and from one batch norm of this
library to another every option that applies (the activation, ``accumulate``, ``on_bad_update`` ...). The kind names the
statistics: ``"batch"`` of a ghost norm is one of the whole batch. What is dropped is said.

**What is refused, with the reason in the report.** Norms that compute what none of torch's does, subclasses among them
(``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` silently drops what a subclass adds); parametrised and lazy norms; a
gain that differs by position where the new norm has one per channel; with an ``example`` that shows it, a norm that is
called with a mask where the new one takes none; norms inside ``torch.nn.TransformerEncoderLayer``, whose fast path
reads their weights without calling them; and every case where the layout of the input decides and is not known:

- ``LayerNorm(C)`` and RMS norm act on the *last* axis, the others on the second. For ``(N, C)`` that is the same; for
  ``(N, L, C)`` the new norm is wrapped so that it sees ``(N, C, L)``. Which it is, only an ``example`` tells.
- A group or synchronised norm does not say how many dimensions its input has; ``example`` or ``dims`` does.
- ``BatchNorm1d`` takes ``(N, C)`` and ``(N, C, L)``. Instance norm of ``(N, C)`` has one value per statistic, and
  torch would read it as one unbatched ``(C, L)``: ``example`` or ``dims=1`` must show that there is a length.

**What becomes what.** Layer norm of a map ``(N, C, *)`` is ``GroupNorm(1, C)``: one mean and variance a sample, over
all channels and positions. RMS norm of a map is this room's :class:`RMSNorm` over the same set, with a shift. Dynamic
tanh is of each value by itself, and its ``alpha`` is a new parameter, which an optimizer must be given. Groups
that do not divide the channels, or leave a group fewer than eight values, become the largest number below that does and
leaves enough, and the report says which. A norm of fewer than eight values a sample is refused: a group norm of two
values leaves the sign of their difference, and a gradient that is near 0 almost everywhere.

The function of the model changes, except between batch norms. New running statistics start at 0 and 1:
``surgery.recalibrate`` sets them.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from normscope._errors import UsageError, shown
from normscope.modules.call import run, set_mode
from normscope.modules.state import traceless, transaction
from normscope.surgery._build import STATISTICS, AlreadyError, Builder, RefusedError, build
from normscope.surgery._modules import ChannelsLast
from normscope.surgery._options import hand_over, not_in
from normscope.surgery._report import Change, Report, Skip
from normscope.surgery._sites import BATCH, INSTANCE, OURS, Only, Site, keep_hooks, norms, why_opaque
from normscope.surgery.foreign import Reading, is_plain, known_norm, read_as, readings, without_others
from normscope.surgery.freeze import is_frozen, refreeze
from normscope.surgery.functional import without_modules

KINDS = (
    "batch",
    "ghost",
    "renorm",
    "sync",
    "torch-batch",
    "group",
    "layer",
    "instance",
    "rms",
    "dyt",
    "affine",
    "none",
)
_MISSING = object()
_ANY_AXES = ("affine", "none", "layer", "dyt")  # that do not rest on the number of positions
_SAMPLES = 16  # of what a norm of another library is given, to find what it computes


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
            ``"group"``, ``"layer"``, ``"instance"``, ``"rms"``, ``"dyt"`` (dynamic tanh, with ``alpha``), ``"affine"``
            (gain and shift without statistics),
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
    with transaction(model):
        chosen = norms(model, only)
        seen = _Seen() if example is _MISSING else _looked(model, chosen, example)
        found = readings(chosen, seen.inputs)
        kept, notes = without_others(chosen, found)
        near = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), None)
        told = [_converted(site, to, found.get(site.module), seen, dims, groups, options, near) for site in kept]
        done = tuple(each for each in told if isinstance(each, Change))
        skipped = tuple(each for each in told if isinstance(each, Skip))
        return Report(model, done, skipped, (*notes, *without_modules(model, chosen)))


def _converted(
    site: Site, to: str | Builder, reading: Reading | None, seen: "_Seen", dims: int | None, groups: int | None,
    options: dict[str, Any], near: Any,
) -> Change | Skip:  # fmt: skip
    """Convert the norm at one place, or say why it is left."""
    old, axes = site.module, seen.ranks.get(site.path)
    if callable(to) or (to in STATISTICS and type(old) in OURS):
        reading = None  # it is given as it is; or the new norm has the old one's activation
    stands = None
    try:
        known, stands = known_norm(site, reading)
        _refuse(known, to, masked=site.path in seen.masked)
        if reading is not None and axes is None and dims is None and to not in _ANY_AXES:
            _refuse_unknown_axes(reading)
        new, detail = build(known.module, to, axes, dims, groups, options, near, seen.sizes.get(site.path))
        details = [detail, *_carry(known.module, new, inserted=not callable(to))]
    except RefusedError as refusal:
        if not (isinstance(refusal, AlreadyError) and stands is not None):
            site.replace(old)
            return Skip(site.path, _why_not(old, reading, refusal))
        placed, details = known, []
    else:
        placed = known.replace(new)
    if stands is not None and reading is not None:
        details.append(read_as(reading))
    what = f"{type(old).__name__} -> {_describe(placed.module)}"
    return Change(site.path, what, "; ".join(filter(None, details)))


def _why_not(old: nn.Module, reading: Reading | None, refusal: RefusedError) -> str:
    if reading is None or type(old) in OURS:
        return str(refusal)
    if reading.norm is None:
        return str(refusal) if "give an example" in reading.why else f"{refusal}: give a function of the norm as to"
    return f"is a {type(old).__name__}, {read_as(reading)}: {refusal}"


def _refuse_unknown_axes(reading: Reading) -> None:
    if reading.axes:
        numbers = ", ".join(map(str, reading.axes[:-1]))
        raise RefusedError(f"takes inputs of {numbers} and {reading.axes[-1]} axes: give an example or dims")


def _refuse(site: Site, to: str | Builder, *, masked: bool) -> None:
    """Refuse norms that cannot be replaced, whatever takes their place."""
    if not site.slots:
        raise RefusedError("is the model itself and cannot be replaced in place: put it into a Sequential")
    if callable(to):
        return
    if isinstance(site.module, nn.LocalResponseNorm):
        raise RefusedError("has no channels, gain or shift of its own: it can only be taken out")
    if opaque := why_opaque(site.module, activation=to in STATISTICS):
        raise RefusedError(opaque)
    if any(isinstance(parent, nn.TransformerEncoderLayer) for parent, _ in site.slots):
        raise RefusedError(
            "torch's TransformerEncoderLayer reads its norms' weights without calling them (its fast path)"
        )
    if masked and to not in STATISTICS:
        raise RefusedError("is called with a mask, lengths or a population, which the new norm takes none of")


@dataclass
class _Seen:
    """What an example shows of each norm, by path.

    Attributes:
        ranks: How many axes its inputs had.
        sizes: Fewest values of a sample.
        inputs: The first input of each norm of another library.
        masked: Norms that were called with more than their input.
    """

    ranks: dict[str, set[int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    masked: set[str] = field(default_factory=set)


def _looked(model: nn.Module, chosen: list[Site], example: Any) -> _Seen:
    """Run the model once."""
    seen = _Seen({site.path: set() for site in chosen})
    with traceless(model):
        set_mode(model, False)
        for site in chosen:

            def look(module: nn.Module, args: tuple[Any, ...], kwargs: Any, path: str = site.path) -> None:
                given = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
                seen.ranks[path].update(x.ndim for x in given[:1])
                for x in given[:1]:
                    seen.sizes[path] = min(x.numel() // max(len(x), 1), seen.sizes.get(path, x.numel()))
                    if path not in seen.inputs and not is_plain(module):
                        seen.inputs[path] = x[:_SAMPLES].detach().clone()
                if len(given) > 1:
                    seen.masked.add(path)

            site.module.register_forward_pre_hook(look, with_kwargs=True)
        run(model, example)
    return seen


def _carry(old: nn.Module, new: nn.Module, *, inserted: bool) -> list[str]:
    """Give ``new`` the running statistics, mode, hooks and freeze of ``old``; return what is to be said of it."""
    details: list[str] = []
    inner = new.norm if isinstance(new, ChannelsLast) else new
    had = getattr(old, "running_mean", None) is not None
    has = getattr(inner, "running_mean", None) is not None
    if inserted:
        if type(inner) is type(old) and repr(inner) == repr(old).replace(", frozen", ""):
            raise AlreadyError(f"is such a {type(old).__name__} already")
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
    if isinstance(new, ChannelsLast):
        return f"{_describe(new.norm)} on the last axis"
    return type(new).__name__ + (f"({new.num_groups}, {new.num_channels})" if isinstance(new, nn.GroupNorm) else "")
