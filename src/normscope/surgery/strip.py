"""Take the norms out of a model, and make up for them in the weights or not.

**What it does.** Norms are replaced by identities at the same paths. What stands in for them is chosen by ``rescale``:

- ``None``: nothing. Gain and shift are lost; activations grow or shrink from layer to layer as the initial weights
  make them. This is the "without batch norm" arm of most comparisons.
- ``"population"``: the function in evaluation mode is preserved. Each batch norm's fixed scale and shift are taken into
  the weights of the linear layer next to it, creating a bias where needed; where none can take them (see
  ``surgery.fold``), a :class:`ChannelAffine` with the same scale and shift stays in the norm's place.
- ``"batch"``: the same with the statistics of the ``example`` batch, all norms normalizing by it: the function in
  training mode at that batch is preserved, and at initialisation the network starts where the normalized one would.
- ``"unit-variance"``: data-dependent initialisation (layer-sequential unit variance; Mishkin & Matas, 2016,
  algorithm 1, without its orthogonal start): in one forward of the ``example``, in order of execution, the weights and
  bias of the layer before each norm are divided by the standard deviation of its output. Exact after one pass, since
  each layer sees the outputs of the ones already scaled.

**What is kept.** Weights remain the same ``Parameter`` objects; modes, hooks, everything else. Fixed scales need batch
norms: other norms are skipped under ``"population"`` and ``"batch"``, with the reason, as are subclasses and, under
``"batch"``, norms that are called more than once (each call has its own statistics).

The result trains, unlike a folded model, for weights differ from those before only by a scale per channel. That the
*gradients* differ is the point of the experiment.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from normscope._errors import DataError, NonFiniteError, UsageError, shown
from normscope.modules.call import run, set_mode
from normscope.modules.state import traceless, transaction
from normscope.ops import Moments, merge
from normscope.surgery import absorb
from normscope.surgery._fast_paths import leave_fast_paths
from normscope.surgery._measure import moments_given
from normscope.surgery._modules import ChannelAffine, NormThen
from normscope.surgery._report import Change, Report, Skip
from normscope.surgery._sites import BATCH, Only, Site, keep_hooks, norms
from normscope.surgery.foreign import Reading, is_batch_norm, place, readings, with_batch_norms, without_others
from normscope.surgery.functional import without_modules
from normscope.surgery.pairs import MISSING, Search, search, why_not_fixed

WAYS = (None, "population", "batch", "unit-variance")


def strip(
    model: nn.Module, rescale: str | None = None, *, example: Any = MISSING, only: Only = None, deviation: float = 1.0
) -> Report:
    """Take norms out of a model.

    Args:
        model: The model, changed in place.
        rescale: None, ``"population"``, ``"batch"`` or ``"unit-variance"``, as described above.
        example: A batch of input to the model: one input, a tuple of arguments, or a mapping of keyword arguments.
            Required for ``"batch"`` and ``"unit-variance"``.
        only: Which norms: None for all; a predicate of path and module; or names, of which ``*`` stands for anything.
        deviation: Standard deviation that ``"unit-variance"`` gives.

    Returns:
        What was taken out and what took its place, and what was skipped and why.

    Raises:
        UsageError: An unknown way, no example where one is required, or a name in ``only`` that fits no norm.
        NonFiniteError: A statistic of the example is not finite.
        DataError: A layer's output does not vary, and so cannot be scaled to ``deviation``.
    """
    if not isinstance(rescale, str | None) or rescale not in WAYS:
        raise UsageError(f"rescale is one of {', '.join(map(repr, WAYS))}, not {shown(rescale)}")
    if rescale in ("batch", "unit-variance") and example is MISSING:
        raise UsageError(f"rescale={rescale!r} takes its statistics from data: give an example batch")
    with transaction(model):
        chosen = norms(model, only)
        found = readings(chosen)
        if rescale in (None, "unit-variance"):
            report = _strip_plainly(model, chosen, found, example if rescale else MISSING, deviation)
        else:
            report = _strip_preserving(model, chosen, found, example, from_batch=rescale == "batch")
        paths = leave_fast_paths(model, {change.path for change in report.done})
        return replace(report, notes=(*report.notes, *paths, *without_modules(model, chosen)))


def _strip_plainly(
    model: nn.Module, chosen: list[Site], found: Mapping[nn.Module, Reading], example: Any, deviation: float
) -> Report:
    done: dict[str, Change] = {}
    skipped: list[Skip] = []
    chosen, notes = without_others(chosen, found)
    stand = {site.path: place(site, found[site.module]) for site in chosen if is_batch_norm(site, found)}
    seen = None if example is MISSING else search(model, example)
    linear: dict[nn.Module, Site] = {}
    for site in chosen:
        if not site.slots:
            skipped.append(Skip(site.path, "is the model itself and cannot be taken out of it"))
            continue
        known = stand[site.path].known if site.path in stand else site
        learned = any(p is not None for p in site.module._parameters.values())
        detail = "gain and shift are lost" if learned else ""
        if seen is not None:
            pair = seen.pair(known, "before") if type(known.module) in BATCH else "is no batch norm"
            if isinstance(pair, str):
                detail = "; ".join(filter(None, (detail, f"no weights were scaled: {pair}")))
            else:
                linear[pair.linear.module] = site
        reading = found.get(site.module)
        if then := reading.then if reading else ():
            stays = ", ".join(type(part).__name__ for part in then)
            detail = "; ".join(filter(None, (detail, f"{stays} behind it stays")))
        if reading is not None and reading.norm is None:
            detail = "; ".join(filter(None, (detail, f"taken out whole: {reading.why}")))
        _identity_for(known, () if known is not site else then)
        done[site.path] = Change(site.path, "taken out", detail)
    if linear:
        for site, before in _scale_in_order(model, linear, example, deviation):
            old = done[site.path]
            done[site.path] = Change(
                old.path, old.what, "; ".join(filter(None, (old.detail, "weights scaled"))), {"deviation": before}
            )
    return Report(model, tuple(done.values()), tuple(skipped), notes)


def _scale_in_order(
    model: nn.Module, linear: dict[nn.Module, Site], example: Any, deviation: float
) -> list[tuple[Site, float]]:
    """Scale each layer when its turn comes in one forward; return the standard deviations that were found."""
    found: list[tuple[Site, float]] = []
    factors: dict[nn.Module, float] = {}

    def scale(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        std = output.double().std(correction=0).item()
        if not 0 < std < torch.inf:
            raise DataError(f"before {linear[module].path} the output has standard deviation {std}: give other data")
        factors[module] = deviation / std
        found.append((linear[module], std))
        return output * factors[module]

    with traceless(model):
        set_mode(model, False)  # nothing random: dropout would add its own variance to what is measured
        for module in linear:
            module.register_forward_hook(scale)
        run(model, example)
    with torch.no_grad():
        for module, factor in factors.items():
            for parameter in module.parameters(recurse=False):
                parameter.mul_(factor)
    return found


def _strip_preserving(
    model: nn.Module, chosen: list[Site], found: Mapping[nn.Module, Reading], example: Any, *, from_batch: bool
) -> Report:
    done: list[Change] = []
    placed, skipped, notes = with_batch_norms(chosen, found)
    seen = search(model, example)
    taken = _batch_statistics(model, [each.known for each in placed], example) if from_batch else {}
    for each in placed:
        site = each.known
        module: Any = site.module
        why = why_not_fixed(site)
        if from_batch and type(module) in BATCH and site.slots:
            calls = taken.get(site.path, [])
            why = None if len(calls) == 1 else f"is called {len(calls)} times with the example: no one scale fits"
        if why:
            skipped.append(Skip(each.old.path, why))
            each.put_back()
            continue
        mean, var = module.running_mean, module.running_var
        if from_batch:
            mean, var = taken[site.path][0].mean + taken[site.path][0].low, taken[site.path][0].variance()
        s, t = absorb.scale_and_shift(module, mean, var)
        if not (s.isfinite().all() and t.isfinite().all()):
            raise NonFiniteError(f"{each.old.path}: its scale or shift is not finite; reset or recalibrate it first")
        done.append(each.named(_absorbed(site, seen, s, t)))
    return Report(model, tuple(done), tuple(skipped), notes)


def _absorbed(site: Site, seen: Search, s: Tensor, t: Tensor) -> Change:
    reasons = []
    for order in ("before", "after"):
        pair = seen.pair(site, order)
        if isinstance(pair, str):
            reasons.append(pair)
            continue
        linear = pair.linear.module
        if order == "after" and (why := absorb.why_not_after(linear, t)):
            reasons.append(why)
            continue
        created = linear.bias is None
        absorb.write(linear, *(absorb.before if order == "before" else absorb.after)(linear, s, t))
        _identity_for(site)
        return Change(site.path, f"taken into {pair.linear.path}", "a bias was created" if created else "")
    weight: Any = site.module.weight
    bias: Any = site.module.bias
    like: Any = weight if weight is not None else next((b for b in site.module.buffers() if b.is_floating_point()), s)
    learns = weight.requires_grad if isinstance(weight, Tensor) else False
    new = ChannelAffine(_like(weight, s.to(like), learns), _like(bias, t.to(like), learns)).train(site.module.training)
    keep_hooks(site.module, new)
    site.replace(new)
    return Change(site.path, "replaced by its scale and shift", "; ".join(dict.fromkeys(reasons)))


def _like(old: nn.Parameter | None, values: Tensor, learns: bool) -> nn.Parameter:
    # A new parameter: the old gain may be tied to that of another norm.
    return nn.Parameter(values.clone(), requires_grad=learns if old is None else old.requires_grad)


def _batch_statistics(model: nn.Module, chosen: list[Site], example: Any) -> dict[str, list[Moments]]:
    """Return the moments of each batch norm's inputs, all of them normalizing by the batch."""
    taken: dict[str, list[Moments]] = {}
    with traceless(model):
        set_mode(model, False)
        for site in norms(model):
            if type(site.module) in BATCH:
                site.module.training = True
        for site in chosen:
            if type(site.module) in BATCH:

                def look(m: nn.Module, args: tuple[Any, ...], kwargs: Any, path: str = site.path) -> None:
                    x = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)).detach().double()
                    if (found := moments_given(m, x, args, kwargs)) is not None:
                        taken.setdefault(path, []).append(found)

                site.module.register_forward_pre_hook(look, with_kwargs=True)
        run(model, example)
    for path, calls in taken.items():
        if not merge(calls[0], calls[0]).m2.isfinite().all():
            raise NonFiniteError(f"{path}: the example gives it values that are not finite")
    return taken


def _identity_for(site: Site, then: tuple[nn.Module, ...] = ()) -> None:
    new = NormThen(nn.Identity(), *then) if then else nn.Identity()
    new.training = site.module.training
    keep_hooks(site.module, new)
    site.replace(new)
