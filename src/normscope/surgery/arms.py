"""The arms of a comparison, made from any network by changing its norms and nothing else.

An arm is the same network, from the same weights, with its norms taken out or turned into others. ``plan`` says what an
arm would be and what cannot be changed, before anything runs; ``make_arm`` changes a model in place; ``arm`` changes a
copy. In place is what a training set-up wants that was made for the arm: whatever holds the model still holds it.

Norms of other libraries are changed where a norm of torch's is seen to compute the same (``surgery.foreign``); what
they do beside normalizing, an activation or dropout, stays. Norms that are called as functions cannot be replaced; they
are named.
"""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from normscope import layers
from normscope._errors import UsageError, shown
from normscope.modules.call import run
from normscope.modules.state import traceless, transaction
from normscope.surgery._arm_work import Work, look_at
from normscope.surgery._build import RefusedError, build
from normscope.surgery._modules import Bypass, ChannelsLast, NormThen
from normscope.surgery._population import PopulationStatistics
from normscope.surgery._report import Change, Skip
from normscope.surgery._sites import BATCH, OURS, Site, keep_hooks
from normscope.surgery.arm_report import ArmReport
from normscope.surgery.convert import _carry, _describe, _refuse
from normscope.surgery.foreign import known_norm
from normscope.surgery.freeze import freeze
from normscope.surgery.recalibrate import recalibrate
from normscope.surgery.scales import match_scales, output_scales
from normscope.usercode import users_code

ARMS: Mapping[str, str] = MappingProxyType(
    {
        "own": "the network as it is",
        "none": "without its norms",
        "rescaled": "without its norms, weights scaled so that signals begin as large as with the norms",
        "batch": "batch norm in the place of each norm",
        "layer": "layer norm in the place of each norm",
        "group": "group norm in the place of each norm",
        "rms": "RMS norm in the place of each norm",
        "dyt": "dynamic tanh, which takes no statistics, in the place of each norm",
        "noisy": "batch norm, and time-varying noise behind each",
        "population": "batch norm by the statistics of a population, without the noise of batches",
        "frozen": "batch norm by the statistics that the first weights give, which then stay",
        "fixed-affine": "norms whose gain and shift do not learn",
    }
)
_KIND = {"batch": "torch-batch", "noisy": "torch-batch", "frozen": "torch-batch", "population": "batch"}
_NEEDS_EXAMPLE = ("rescaled", "population", "frozen")


def plan(model: nn.Module, arm: str, *, example: Any = None, seed: int = 0, groups: int = 32) -> ArmReport:
    """Say what an arm would be, changing nothing.

    Args:
        model: The model; left as it was.
        arm: A name of ``ARMS``.
        example: A batch of input to the model: one input, a tuple of arguments, or a mapping of keyword arguments.
            Without it only the source is read for norms called as functions, and what rests on shapes is refused.
        seed: Of what is drawn for the arm.
        groups: Of group norms, at most; no group has fewer than two channels or, as far as is known, eight values.

    Raises:
        UsageError: No such arm, or the model raises with the example.
    """
    with traceless(model):
        return make_arm(model, arm, example=example, seed=seed, groups=groups)


def arm(model: nn.Module, name: str, *, example: Any = None, seed: int = 0, groups: int = 32) -> tuple[Any, ArmReport]:
    """Make an arm of a copy of a model; arguments as of ``plan``.

    Returns:
        The copy, changed, and what was done.

    Raises:
        UsageError: As of ``make_arm``; or the model cannot be copied.
    """
    with users_code("copying the model"):
        twin = copy.deepcopy(model)
    return twin, make_arm(twin, name, example=example, seed=seed, groups=groups)


def make_arm(model: nn.Module, name: str, *, example: Any = None, seed: int = 0, groups: int = 32) -> ArmReport:
    """Make an arm of a model by changing it in place, or leave it as it was.

    Args:
        model: The model, with the weights from which all arms begin.
        name: A name of ``ARMS``.
        example: As of ``plan``. ``"rescaled"``, ``"frozen"`` and ``"population"`` take their statistics from it: give
            ``"population"`` as many samples as can be afforded at every step.
        seed: Of what is drawn for the arm.
        groups: Of group norms.

    Returns:
        What was done and what not. ``refuses()`` says whether this is an arm of its own.

    Raises:
        UsageError: No such arm; no example where one is required; or the model raises with the example.
    """
    if not isinstance(name, str) or name not in ARMS:
        raise UsageError(f"an arm is one of {', '.join(ARMS)}, not {shown(name)}")
    if name in _NEEDS_EXAMPLE and example is None:
        raise UsageError(f"the arm {name!r} takes statistics from data: give an example batch")
    with transaction(model):
        work = look_at(model, example, seed, groups)
        if name == "fixed-affine":
            _fix(work)
        elif name in ("none", "rescaled"):
            _take_out(work, rescale=name == "rescaled")
        elif name != "own":
            _turn_into(work, name)
        return work.report(name)


def _take_out(work: Work, *, rescale: bool) -> None:
    prepared = []
    for site in work.sites:
        if not site.slots:
            work.left.append(Skip(site.path, "is the model itself and stays: put it into a Sequential"))
            continue
        old, what = site.module, type(site.module).__name__
        try:
            site, _ = known_norm(site, work.readings.get(site.module))
        except RefusedError as refusal:
            work.notes.append(f"{site.path}: {refusal}; it is taken out whole")
        prepared.append((site, old, what))
    wanted = output_scales(work.model, [site.module for site, *_ in prepared], work.example) if rescale else {}
    for site, old, what in prepared:
        new: nn.Module = Bypass()
        reading = work.readings.get(old)
        if reading is not None and reading.norm is None and reading.then:
            new = NormThen(Bypass(), *reading.then)
        new.training = old.training
        keep_hooks(site.module, new)
        site.replace(new)
        kept = ", ".join(type(part).__name__ for part in reading.then) if reading else ""
        work.changes.append(Change(site.path, f"{what} -> nothing", f"{kept} behind it stays" if kept else ""))
    work.leave_fast_paths()
    if normalized := _with_normalized_weights(work.model):
        some = ", ".join(normalized[:3]) + " ..." * (len(normalized) > 3)
        work.notes.append(f"weight or spectral norm stays, as it normalizes weights: {some}")
    if rescale:
        names = {module: path for path, module in work.model.named_modules()}
        factors = match_scales(work.model, wanted, work.example)
        work.scaled = {names[module]: factor for module, factor in factors.items() if factor != 1.0}
        rest = [names[module] for module in wanted if module not in factors]
        if rest:
            work.notes.append(f"weights that were not scaled: {', '.join(rest[:5])}{' ...' * (len(rest) > 5)}")


def _with_normalized_weights(model: nn.Module) -> list[str]:
    """Return the layers whose weights are normalized, by parametrizations or by the hooks of before."""
    found = []
    for path, module in model.named_modules():
        steps = [step for steps in getattr(module, "parametrizations", {}).values() for step in steps]
        kinds = {type(each).__name__.lstrip("_") for each in (*steps, *module._forward_pre_hooks.values())}
        if kinds & {"WeightNorm", "SpectralNorm"}:
            found.append(path)
    return found


def _turn_into(work: Work, name: str) -> None:
    kind = _KIND.get(name, name)
    near = next((t for t in (*work.model.parameters(), *work.model.buffers()) if t.is_floating_point()), None)
    norms: list[Site] = []
    for index, site in enumerate(work.sites):
        old = site.module
        try:
            if isinstance(old, nn.LocalResponseNorm):
                raise RefusedError("has no channels, gain or shift of its own: it can only be taken out")
            known, stands = known_norm(site, work.readings.get(site.module))
            now = known.module
            if not _is_already(now, name):
                _refuse(known, kind, masked=old in work.eyes.masked)
                ranks, size = work.eyes.ranks.get(old), work.eyes.sizes.get(old)
                new, detail = build(now, kind, ranks, None, _groups(work, now), {}, near, size)
                details = [detail, *_carry(now, new, inserted=True)]
                # Training gives new statistics their values, and an optimizer follows the model.
                details = [each.removesuffix(": recalibrate").partition(": give it to")[0] for each in details]
                known = known.replace(new)
                what = f"{type(old).__name__} -> {_describe(known.module)}"
                work.changes.append(Change(site.path, what, "; ".join(filter(None, details))))
            elif stands is not None and name not in ("noisy", "frozen"):
                site.replace(old)  # nothing to change: the module itself stays
                known = site
            norms.append(known)
            if name == "noisy":
                _add_noise(work, known, index)
            elif not any(change.path == site.path for change in work.changes) and name != "frozen":
                work.kept.append(site.path)
        except RefusedError as refusal:
            site.replace(old)
            if "already" in str(refusal):
                work.kept.append(site.path)
            else:
                work.left.append(Skip(site.path, str(refusal)))
    work.leave_fast_paths()
    if name == "population" and norms:
        PopulationStatistics(work.example).attach(work.model)
        work.notes.append("each forward in training runs the population first")
    if name == "frozen" and norms:
        _freeze(work, norms)


def _groups(work: Work, norm: Any) -> int:
    """Return how many groups a group norm is to have: at most so many that a group has two channels."""
    shape = getattr(norm, "normalized_shape", None)
    channels = shape[0] if shape else getattr(norm, "num_features", None) or norm.num_channels
    return max(1, min(work.groups, channels // 2))


def _is_already(norm: Any, name: str) -> bool:
    if name == "rms":
        return isinstance(norm, nn.RMSNorm)
    if name == "population":
        return type(norm) in OURS and norm.statistics == "batch"
    plain = type(norm) in BATCH and getattr(norm, "statistics", "batch") in ("batch", "sync")
    return _KIND.get(name) == "torch-batch" and plain


def _add_noise(work: Work, site: Site, index: int) -> None:
    wrapped = site.module if isinstance(site.module, ChannelsLast) else None
    norm: Any = site.module if wrapped is None else wrapped.norm
    noise = layers.TimeVaryingNoise(norm.num_features, seed=1000 * work.seed + index)
    new = NormThen(norm, noise).train(norm.training)
    if wrapped is not None:
        wrapped.norm = new
    else:
        site.replace(new)
    said = [change for change in work.changes if change.path != site.path]
    before = next((change for change in work.changes if change.path == site.path), None)
    what = before.what if before else type(norm).__name__
    work.changes[:] = [*said, Change(site.path, f"{what} and noise behind it", before.detail if before else "")]


def _freeze(work: Work, sites: list[Site]) -> None:
    inner = [site.module.norm if isinstance(site.module, ChannelsLast) else site.module for site in sites]
    recalibrate(work.model, [work.example], run, only=lambda _, m: any(m is n for n in inner))
    for site, norm in zip(sites, inner, strict=True):
        freeze(norm)
        before = next((change for change in work.changes if change.path == site.path), None)
        work.changes[:] = [change for change in work.changes if change is not before]
        what = before.what if before else type(norm).__name__
        work.changes.append(Change(site.path, f"{what}, frozen at the statistics of the example"))


def _fix(work: Work) -> None:
    for site in work.sites:
        learning = [(name, p) for name, p in site.module.named_parameters() if p.requires_grad]
        for _, parameter in learning:
            parameter.requires_grad_(False)
        if learning:
            work.changes.append(Change(site.path, f"{' and '.join(n for n, _ in learning)} do not learn"))
        else:
            work.kept.append(site.path)
