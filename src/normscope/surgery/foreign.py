"""Norms of other libraries, read by what they compute.

A class of another library that is named a norm, or derived from a norm, may compute anything. What it computes is found
by trying: the module is called, and its output compared with that of each of torch's norms on the same gain, shift and
statistics, followed by the dropout and the activation that the module holds. Where one agrees, that norm can stand in
the module's place: timm's ``BatchNormAct2d`` is a batch norm and an activation, torchvision's ``FrozenBatchNorm2d`` a
frozen batch norm, ConvNeXt's ``LayerNorm`` a layer norm over the second axis, Llama's and T5's an RMS norm.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.nn.utils.parametrize import is_parametrized

from normscope.modules.sites import running
from normscope.surgery._build import RefusedError
from normscope.surgery._candidates import candidates
from normscope.surgery._modules import ChannelsFirst, ChannelsLast, NormThen
from normscope.surgery._report import Change, Skip
from normscope.surgery._sites import BATCH, INSTANCE, OTHER, OURS, Site, keep_hooks
from normscope.surgery._trying import (
    agree,
    called,
    channels,
    ignores_scale,
    inputs,
    output,
    with_other_values,
)

_Told = TypeVar("_Told", Change, Skip)
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
        axes: How many axes its inputs may have, where nothing says which it is: more than one number.
    """

    norm: nn.Module | None
    then: tuple[nn.Module, ...] = ()
    why: str = ""
    is_norm: bool = True
    axes: tuple[int, ...] = ()


def is_plain(module: nn.Module) -> bool:
    """Whether a norm is of a class that is known exactly, with nothing fused into it, or has no shape yet."""
    lazy = isinstance(module, _LazyNormBase)
    exact = type(module) in (*BATCH, *INSTANCE, *OTHER, nn.LocalResponseNorm)
    return lazy or (exact and getattr(module, "activation", None) in (None, "none"))


def read(module: Any, given: Tensor | None = None) -> Reading:
    """Find what a norm of another library computes.

    Compared are copies with other values in parameters and buffers, for at a gain of 1 and a shift of 0 many norms are
    equal. A norm with running statistics is compared in both modes, and its running mean after a call in training too:
    one that is frozen, or that means the other share by its momentum, is not taken for a plain one.

    Args:
        module: The norm; left as it is.
        given: An input that it was seen to have; without it, usual shapes are tried.
    """
    if type(module) in OURS:
        return _without_activation(module)
    if is_parametrized(module):
        return Reading(None, why="is parametrised (torch.nn.utils.parametrize): remove the parametrisation first")
    derived = isinstance(module, (_BatchNorm, nn.modules.instancenorm._InstanceNorm, *OTHER))
    then, tried = following(module), list(inputs(module, given))
    modes = (module.training, not module.training) if running(module) else (module.training,)
    sized = given is not None or channels(module) is not None
    other = with_other_values(module)
    for x in tried if sized else ():
        seen = {mode: called(other, x, training=mode) for mode in modes}
        for index, norm in enumerate(candidates(other, x) if seen[module.training][1] is not None else ()):
            if _computes_the_same(NormThen(norm, *then), x, seen):
                norm = next(islice(candidates(module, x), index, None))
                return Reading(norm.train(module.training), then, axes=_axes(module, norm, tried))
    name = type(module).__name__
    if not sized:
        why = f"{name} does not say how many channels it has: give an example"
        return Reading(None, then, why, is_norm=any(ignores_scale(module, x) for x in tried))
    if any(ignores_scale(module, x) for x in tried):
        return Reading(None, then, f"{name} normalizes in a way of its own, as none of torch's norms does")
    if derived or running(module):
        why = f"{name} {'is derived from' if derived else 'has the statistics of'} a norm but computes something else"
        return Reading(None, then, why)
    return Reading(None, then, f"{name} is named a norm, but its output follows its input's scale", is_norm=False)


def _computes_the_same(norm: NormThen, x: Tensor, seen: Mapping[bool, tuple[nn.Module, Tensor | None]]) -> bool:
    """Whether a norm puts out the same as was seen in each mode, and counts the same into its running mean."""
    for training, (theirs, expected) in seen.items():
        if expected is None:
            continue
        mine, found = called(norm, x, training=training)
        if found is None or not agree(found, expected):
            return False
        names = running(theirs)
        if training and names and not agree(_mean(mine.norm), theirs.get_buffer(names[0])):
            return False
    return True


def _mean(norm: Any) -> Any:
    return norm.running_mean


def _axes(module: nn.Module, norm: nn.Module, tried: Sequence[Tensor]) -> tuple[int, ...]:
    """Return how many axes the inputs of a batch norm may have; none where its class or an input says so."""
    if len(tried) == 1 or not isinstance(norm, tuple(BATCH)):
        return ()
    if isinstance(module, tuple(kind for kind, dims in BATCH.items() if dims in (2, 3))):
        return ()
    put_out = [(x, output(module, x, training=module.training)) for x in tried]
    taken = {x.ndim for x, y in put_out if y is not None and y.shape == x.shape}
    return tuple(sorted(taken)) if len(taken) > 1 else ()


def readings(chosen: Iterable[Site], given: Mapping[str, Tensor] | None = None) -> dict[nn.Module, Reading]:
    """Read the norms of other libraries among some places.

    Args:
        chosen: The places.
        given: Inputs that they were seen to have, by path.
    """
    return {s.module: read(s.module, (given or {}).get(s.path)) for s in chosen if not is_plain(s.module)}


def without_others(chosen: Iterable[Site], read: Mapping[nn.Module, Reading]) -> tuple[list[Site], tuple[str, ...]]:
    """Return the places of norms, and sentences on modules that are only named so."""
    kept, notes = list[Site](), list[str]()
    for site in chosen:
        reading = read.get(site.module)
        if reading is None or reading.is_norm:
            kept.append(site)
        else:
            notes.append(f"{site.path}: {reading.why}, so it is taken for none")
    return kept, tuple(notes)


def read_as(reading: Reading) -> str:
    """Say what a norm of another library was taken for."""
    parts = [type(part).__name__ for part in (reading.norm, *reading.then) if part is not None]
    stays = f" and {' and '.join(parts[1:])}, which stays" if parts[1:] else ""
    return f"read as {parts[0]}{stays}"


def known_norm(site: Site, reading: Reading | None) -> tuple[Site, nn.Module | None]:
    """Put a known norm in a site's place where that is needed.

    Returns:
        The known norm's site, and what hangs in the place now; None where the site had a known norm.

    Raises:
        RefusedError: It is not known what the norm computes.
    """
    if reading is None:
        return site, None
    new = stand_in(site, reading)
    if new is None or reading.norm is None:
        raise RefusedError(reading.why or "is the model itself and cannot be replaced: put it into a Sequential")
    slots: tuple[tuple[Any, Any], ...] = ((new, "norm"),) if new is not reading.norm else site.slots
    known = Site(site.path, reading.norm, slots)
    if isinstance(reading.norm, ChannelsFirst):
        known = _Turned(site.path, reading.norm.norm, slots, reading.norm)
    return known, new


@dataclass(frozen=True)
class Placed:
    """A norm, and the known norm that is in its place meanwhile.

    Attributes:
        old: The place of the norm.
        known: The place of the known norm; the same where the norm is known.
    """

    old: Site
    known: Site

    def put_back(self) -> None:
        """Hang the norm where it hung."""
        if self.known is not self.old:
            self.old.replace(self.old.module)

    def named(self, told: _Told) -> _Told:
        """Name the norm in what is told of the known norm."""
        return replace(told, path=self.old.path)


def with_batch_norms(
    chosen: Iterable[Site], found: Mapping[nn.Module, Reading]
) -> tuple[list[Placed], list[Skip], tuple[str, ...]]:
    """Put torch's batch norm into the places of other libraries' norms that compute the same.

    Args:
        chosen: The norms.
        found: What those of other libraries compute.

    Returns:
        All norms that are known, and the rest with the reason; sentences on modules that are only named so.
    """
    placed, skipped = list[Placed](), list[Skip]()
    kept, notes = without_others(chosen, found)
    for site in kept:
        reading = found.get(site.module)
        if reading is None:
            placed.append(Placed(site, site))
        elif reading.norm is None:
            skipped.append(Skip(site.path, reading.why))
        elif is_batch_norm(site, found):
            placed.append(place(site, reading))
        elif not site.slots:
            skipped.append(Skip(site.path, "is the model itself"))
        else:
            name = type(site.module).__name__
            skipped.append(Skip(site.path, f"{name} takes its statistics from each sample: there is no fixed scale"))
    return placed, skipped, notes


def is_batch_norm(site: Site, found: Mapping[nn.Module, Reading]) -> bool:
    """Whether a norm of another library computes what a batch norm of torch's does, and can be replaced."""
    reading = found.get(site.module)
    return bool(site.slots) and reading is not None and isinstance(reading.norm, tuple(BATCH))


def place(site: Site, reading: Reading) -> Placed:
    """Put a known norm into the place of another library's."""
    known, _ = known_norm(site, reading)
    path = f"{site.path}.norm" if reading.then else site.path
    return Placed(site, Site(path, known.module, known.slots))


@dataclass(frozen=True)
class _Turned(Site):
    """A place of a norm of the last axis within a module that turns the second axis there."""

    turn: ChannelsFirst

    def replace(self, new: nn.Module) -> Site:
        """Hang ``new`` in the turn; or in the turn's place, where ``new`` needs none or would turn the axis back."""
        if isinstance(new, (ChannelsLast, nn.Identity)):
            return super().replace(new.norm if isinstance(new, ChannelsLast) else new)
        self.turn.norm = new
        super().replace(self.turn)
        return Site(self.path, new, ((self.turn, "norm"),))


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
