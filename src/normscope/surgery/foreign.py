"""Norms of other libraries, read by what they compute.

A class of another library that is named a norm, or derived from a norm, may compute anything. What it computes is found
by trying: the module is called, and its output compared with that of each of torch's norms on the same gain, shift and
statistics, followed by the dropout and the activation that the module holds. Where one agrees, that norm can stand in
the module's place: timm's ``BatchNormAct2d`` is a batch norm and an activation, torchvision's ``FrozenBatchNorm2d`` a
frozen batch norm, ConvNeXt's ``LayerNorm`` a layer norm over the second axis, Llama's and T5's an RMS norm.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.nn.utils.parametrize import is_parametrized

from normscope.modules.rng import torch_streams_kept
from normscope.modules.sites import is_known_norm
from normscope.surgery._modules import ChannelsFirst, NormThen, RMSNorm
from normscope.surgery._sites import BATCH, INSTANCE, OTHER, OURS, Site, beside_children, keep_hooks, sites
from normscope.surgery.freeze import freeze

_GAINS = ("weight", "gamma", "gain", "scale", "g", "a_2", "alpha")
_SHIFTS = ("bias", "beta", "shift", "b", "b_2")
_EPS = ("eps", "epsilon", "variance_epsilon", "variance_eps", "norm_eps")
_USUAL_EPS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3)
# The largest rank first that a module may take: of a batch (4, C) alone it does not show which axis it takes for C.
_SHAPES = ((4, "C", 5, 6), (4, 5, "C"), (4, "C", 5), (4, 5, 6, "C"), (3, "C", 4, 5, 6), (4, "C"))
_STRINGS = {"relu": nn.ReLU, "elu": nn.ELU, "identity": nn.Identity, "none": nn.Identity}


@dataclass(frozen=True)
class Reading:
    """What a module of another library computes.

    Attributes:
        norm: A norm that computes the same, on the same parameters and buffers; None where none of torch's does.
        then: What the module does after normalizing.
        why: Without ``norm``: what the module was seen to do.
        is_norm: Whether the module normalizes: a norm was found, its output does not follow the scale of its input, or
            its class is derived from a norm's.
    """

    norm: nn.Module | None
    then: tuple[nn.Module, ...] = ()
    why: str = ""
    is_norm: bool = True


def norm_sites(model: nn.Module) -> list[Site]:
    """Return all places of a model that may be norms: known ones, derived ones, and modules that are named so.

    Of a norm within another module that is named a norm (a wrapper that turns the axes, say) the inner one counts.
    """
    found = [site for site in (*sites(model), *_unregistered(model)) if _may_be_norm(site)]
    holds = {site.path: [other for other in found if other.path.startswith(f"{site.path}.")] for site in found}
    return [site for site in found if not holds[site.path] or is_known_norm(site.module)]


def is_plain(module: nn.Module) -> bool:
    """Whether a norm is of a class that is known exactly, with nothing fused into it, or has no shape yet."""
    lazy = isinstance(module, _LazyNormBase)
    exact = type(module) in (*BATCH, *INSTANCE, *OTHER, nn.LocalResponseNorm)
    return lazy or (exact and getattr(module, "activation", None) in (None, "none"))


def read(module: Any, given: Tensor | None = None) -> Reading:
    """Find what a norm of another library computes.

    Args:
        module: The norm; left as it is.
        given: An input that it was seen to have; without it, usual shapes are tried.
    """
    if type(module) in OURS:
        return _without_activation(module)
    if is_parametrized(module):
        return Reading(None, why="is parametrised (torch.nn.utils.parametrize): remove the parametrisation first")
    derived = isinstance(module, (_BatchNorm, nn.modules.instancenorm._InstanceNorm, *OTHER))
    then, inputs = following(module), list(_inputs(module, given))
    sized = given is not None or _channels(module) is not None
    for x in inputs if sized else ():
        expected = _output(module, x)
        for norm in _candidates(module, x) if expected is not None else ():
            found = _output(NormThen(norm, *then), x, training=module.training)
            if found is not None and expected is not None and _agree(found, expected):
                return Reading(_same_mode(norm, module), then)
    name = type(module).__name__
    if not sized:
        why = f"{name} does not say how many channels it has: give an example"
        return Reading(None, then, why, is_norm=any(_ignores_scale(module, x) for x in inputs))
    if any(_ignores_scale(module, x) for x in inputs):
        return Reading(None, then, f"{name} normalizes in a way of its own, as none of torch's norms does")
    if derived:
        return Reading(None, then, f"{name} is derived from a norm but computes something else: give a callable")
    return Reading(None, then, f"{name} is named a norm, but its output follows its input's scale", is_norm=False)


def stand_in(site: Site, reading: Reading) -> nn.Module | None:
    """Put torch's norm, and what follows it, in the place of another library's; return the module that took its place.

    The function stays the same, and so do parameters, buffers and hooks.
    """
    if reading.norm is None or not site.slots:
        return None
    new = NormThen(reading.norm, *reading.then) if reading.then else reading.norm
    new.train(site.module.training)
    keep_hooks(site.module, new)
    site.replace(new)
    return new


def _unregistered(model: nn.Module) -> Iterator[Site]:
    """Yield the places of modules that hang in plain lists, dictionaries and attributes only."""
    known = set(model.modules())
    for path, parent in list(model.named_modules()):
        for held, holder, key, name in beside_children(parent):
            if held in known:
                continue
            for inner in sites(held):
                if inner.module not in known:
                    known.add(inner.module)
                    where = ".".join(filter(None, (path, name, inner.path)))
                    yield Site(where, inner.module, inner.slots or ((holder, key),))


def following(module: Any) -> tuple[nn.Module, ...]:
    """Return what a norm of another library holds to call after normalizing: dropout, an activation."""
    children = [child for child in module.children() if not isinstance(child, nn.Identity)]
    named = getattr(module, "activation", None)
    if isinstance(named, str) and not children:
        slope = getattr(module, "activation_param", 0.01)
        return (
            (nn.LeakyReLU(slope),) if named == "leaky_relu" else tuple(_STRINGS[n]() for n in (named,) if n in _STRINGS)
        )
    return tuple(children)


def _may_be_norm(site: Site) -> bool:
    module = site.module
    if "parametrizations" in site.path.split(".") or isinstance(module, (NormThen, ChannelsFirst)):
        return False
    if is_known_norm(module) or isinstance(module, nn.LocalResponseNorm):
        return True
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return False
    tracks = {"running_mean", "running_var"} <= module._buffers.keys()
    named = "norm" in type(module).__name__.lower()
    return (tracks or named) and all(p.numel() == max(p.shape, default=1) for p in module.parameters())


def _without_activation(old: Any) -> Reading:
    """Read a batch norm of this library with an activation fused into it."""
    new = copy.copy(old)
    for name in ("_parameters", "_buffers", "_modules"):
        vars(new)[name] = dict(vars(old)[name])
    for name, value in vars(old).items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
            vars(new)[name] = type(value)()
    new.activation = None
    then = nn.ReLU() if old.activation == "relu" else nn.LeakyReLU(old.negative_slope)
    return Reading(new, (then.train(old.training),))


def _held(module: Any, names: tuple[str, ...]) -> Any:
    held = {**module._buffers, **module._parameters}
    return next((held[name] for name in names if held.get(name) is not None), None)


def _inputs(module: Any, given: Tensor | None) -> Iterator[Tensor]:
    stream = torch.Generator().manual_seed(0)
    if given is not None and not given.is_nested and given.ndim and given.is_floating_point():
        # Of its shape, not its values: those may be all zero, where every norm gives its shift.
        size: Any = (max(4, len(given)), *given.shape[1:])
        yield torch.randn(size, generator=stream).mul(1.3).add(0.4).to(given)
        return
    known = next((t for t in (_held(module, _GAINS), *module.buffers()) if t is not None and t.numel() > 1), None)
    place = {"dtype": known.dtype, "device": known.device} if known is not None and known.is_floating_point() else {}
    for shape in _SHAPES:
        size = tuple((_channels(module) or 7) if n == "C" else n for n in shape)
        yield torch.randn(size, generator=stream).mul(1.3).add(0.4).to(**place)


def _channels(module: Any) -> int | None:
    """Return how many channels a norm says it has."""
    known = next((t for t in (_held(module, _GAINS), *module.buffers()) if t is not None and t.numel() > 1), None)
    said = getattr(module, "num_features", None) or getattr(module, "num_channels", None)
    return said or (known.numel() if known is not None else None)


@torch.no_grad()
def _output(module: nn.Module, x: Tensor, *, training: bool | None = None, scale: float = 1.0) -> Tensor | None:
    """Call a copy of a module, its children not training, so that nothing is dropped."""
    twin = copy.deepcopy(module)
    mode = module.training if training is None else training
    for inner in twin.modules():
        for name, value in vars(inner).items():
            if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                vars(inner)[name] = type(value)()
        inner.training = False
    for inner in (twin.norm, *twin.norm.modules()) if isinstance(twin, NormThen) else (twin,):
        inner.training = mode and "train" not in vars(inner)
    try:
        with torch_streams_kept():
            found = twin(x.clone() * scale)
    except Exception:
        return None
    return found if isinstance(found, Tensor) and found.isfinite().all() else None


def _agree(a: Tensor, b: Tensor) -> bool:
    tolerance = 2e-2 if b.dtype in (torch.float16, torch.bfloat16) else 1e-4
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def _ignores_scale(module: nn.Module, x: Tensor) -> bool:
    """Whether the output stays about as large when the input becomes eight times as large."""
    small, large = _output(module, x, training=True), _output(module, x, training=True, scale=8.0)
    if small is None or large is None or small.shape != large.shape:
        return False
    return bool(0 < large.double().square().mean() < 4 * small.double().square().mean())


def _candidates(module: Any, x: Tensor) -> Iterator[nn.Module]:
    """Yield the norms that a module may be, on its own parameters and buffers."""
    gain, shift = _held(module, _GAINS), _held(module, _SHIFTS)
    for vector in (gain, shift):
        if vector is not None and vector.numel() != max(vector.shape, default=1):
            return
    own = next((getattr(module, name) for name in _EPS if isinstance(getattr(module, name, None), float)), None)
    for eps in _USUAL_EPS if own is None else (own,):
        yield from _with_gain(module, x, _vector(gain), _vector(shift), eps)
        if gain is not None:  # Gemma's gain is kept as its distance from 1
            yield from _with_gain(module, x, nn.Parameter(gain.detach().flatten() + 1), _vector(shift), eps)


def _vector(values: Any) -> Any:
    if values is None or (isinstance(values, nn.Parameter) and values.ndim == 1):
        return values
    learns = isinstance(values, nn.Parameter) and values.requires_grad
    return nn.Parameter(values.detach().flatten(), requires_grad=learns)


def _with_gain(module: Any, x: Tensor, gain: Any, shift: Any, eps: float) -> Iterator[nn.Module]:
    held = next((t for t in (gain, shift, *module.buffers()) if t is not None), x)
    place: dict[str, Any] = {"dtype": held.dtype if held.is_floating_point() else x.dtype, "device": x.device}
    rank, learns = x.ndim, gain is not None or shift is not None
    if module._buffers.get("running_mean") is not None and 2 <= rank <= 5:
        size = module.running_mean.numel()
        kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 2]
        momentum = getattr(module, "momentum", 0.1)
        new = kind(
            size, eps=eps, momentum=momentum if isinstance(momentum, float | None) else 0.1, affine=learns, **place
        )
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            if name in module._buffers:
                new._buffers[name] = module._buffers[name]
        yield _holding(new, gain, shift)
        if not isinstance(module, _BatchNorm):
            frozen = kind(size, eps=eps, affine=learns, **place)
            frozen._buffers.update(new._buffers)
            yield _frozen(_holding(frozen, gain, shift))
        return
    if isinstance(getattr(module, "num_groups", None), int) and rank >= 2:
        yield _holding(nn.GroupNorm(module.num_groups, x.shape[1], eps=eps, affine=learns, **place), gain, shift)
        return
    for axis in (-1, 1) if rank > 2 else (-1,):
        size = x.shape[axis]
        if any(v is not None and v.numel() != size for v in (gain, shift)):
            continue
        turn = ChannelsFirst if axis == 1 else (lambda norm: norm)
        yield turn(_holding(nn.LayerNorm(size, eps=eps, elementwise_affine=learns, **place), gain, shift))
        if shift is None:
            yield turn(_holding(nn.RMSNorm(size, eps=eps, elementwise_affine=learns, **place), gain, None))
        else:
            yield turn(RMSNorm(gain, shift, -1, eps=eps))
        if axis == 1:
            yield _holding(nn.GroupNorm(1, size, eps=eps, affine=learns, **place), gain, shift)
            yield _holding(nn.GroupNorm(size, size, eps=eps, affine=learns, **place), gain, shift)


def _holding(new: nn.Module, gain: Any, shift: Any) -> nn.Module:
    for name, kept in (("weight", gain), ("bias", shift)):
        if name in new._parameters:
            new._parameters[name] = kept
    return new


def _frozen(norm: nn.Module) -> nn.Module:
    freeze(norm)
    return norm


def _same_mode(norm: nn.Module, old: nn.Module) -> nn.Module:
    return norm.train(old.training)
