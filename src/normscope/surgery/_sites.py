"""Which modules of a model are norms, where they hang, and how one is put in the place of another."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrize import is_parametrized

from normscope import layers
from normscope._errors import UsageError, shown
from normscope.modules.sites import is_known_norm, running
from normscope.surgery._modules import ChannelsFirst, NormThen, RMSNorm
from normscope.surgery._trying import normalizes

Only = Callable[[str, nn.Module], bool] | str | Iterable[str] | None

BATCH: dict[type, int | None] = {
    nn.BatchNorm1d: 1,
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
    nn.SyncBatchNorm: None,
    layers.BatchNorm1d: 1,
    layers.BatchNorm2d: 2,
    layers.BatchNorm3d: 3,
}
OURS: tuple[type, ...] = (layers.BatchNorm1d, layers.BatchNorm2d, layers.BatchNorm3d)
INSTANCE: dict[type, int | None] = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}
OTHER: tuple[type, ...] = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, RMSNorm)
_BEHIND = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Mish, nn.PReLU)
_FAMILIES = (_BatchNorm, _InstanceNorm, *OTHER)


@dataclass(frozen=True)
class Site:
    """A module and every place where it hangs.

    Attributes:
        path: Its first qualified name.
        module: The module.
        slots: Pairs of a parent and the name under which the parent has it; none for the model itself. The parent is
            a module, or a list or a dictionary that a module has as an attribute.
    """

    path: str
    module: nn.Module
    slots: tuple[tuple[Any, Any], ...]

    def replace(self, new: nn.Module) -> "Site":
        """Hang ``new`` wherever the module hangs now, and return the place of ``new``."""
        for parent, name in self.slots:
            # Not setattr: that would go through a parent's own __setattr__, and containers number their children.
            if not isinstance(parent, nn.Module):
                parent[name] = new
            elif name in parent._modules:
                parent._modules[name] = new
            else:
                vars(parent)[name] = new
        return Site(self.path, new, self.slots)


def sites(model: nn.Module) -> list[Site]:
    """Return every module of a model once, in the order of ``named_modules``."""
    slots: dict[nn.Module, list[tuple[Any, Any]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                slots.setdefault(child, []).append((parent, name))
        for child, holder, key, _ in beside_children(parent):
            slots.setdefault(child, []).append((holder, key))
    return [Site(path, module, tuple(slots.get(module, ()))) for path, module in model.named_modules()]


def beside_children(parent: nn.Module) -> Iterator[tuple[nn.Module, Any, Any, str]]:
    """Yield the modules that a module holds beside its children: in a plain attribute, a list or a dictionary.

    Yields:
        The module, what holds it, under which key, and a name.
    """
    for name, value in list(vars(parent).items()):
        if name in ("_modules", "_parameters", "_buffers") or name.endswith("_hooks"):
            continue
        if isinstance(value, nn.Module):
            yield value, parent, name, name
        elif isinstance(value, (list, dict)):
            for key, held in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(held, nn.Module):
                    yield held, value, key, f"{name}.{key}"


def norm_sites(model: nn.Module) -> list[Site]:
    """Return all places of a model that may be norms.

    They are torch's and those derived from them, modules that are named a norm or have a running mean and variance, and
    modules that normalize as far as calls of a copy show.

    Of a norm within another module that is named a norm (a wrapper that turns the axes, say) the inner one counts.
    """
    found = [site for site in (*sites(model), *_unregistered(model)) if _may_be_norm(site)]
    holds = {site.path: [other for other in found if other.path.startswith(f"{site.path}.")] for site in found}
    return [site for site in found if not holds[site.path] or is_known_norm(site.module)]


def norms(model: nn.Module, only: Only = None) -> list[Site]:
    """Return the norms of a model that ``only`` selects: see ``norm_sites``, without those in plain lists alone.

    Args:
        model: The model.
        only: None for all; a predicate of path and module; or names, in which ``*`` stands for anything. A name that a
            norm has is that norm's alone, whatever letters are in it.

    Raises:
        UsageError: A name fits no norm, or is no text.
    """
    registered = set(model.modules())
    found = [site for site in norm_sites(model) if site.module in registered]
    if only is None:
        return found
    if callable(only):
        return [site for site in found if only(site.path, site.module)]
    names = list(only) if isinstance(only, Iterable) and not isinstance(only, str) else [only]
    paths = {site.path for site in found}
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"only takes names of norms, or a function of path and module, not {shown(name)}")
        if not any(_fits(site.path, name, paths) for site in found):
            near = ", ".join(site.path for site in found[:5]) or "none at all"
            raise UsageError(f"no norm of the model is named {name!r}; there are {near}{' ...' * (len(found) > 5)}")
    return [site for site in found if any(_fits(site.path, name, paths) for name in names)]


def _fits(path: str, name: str, paths: Collection[str]) -> bool:
    return path == name if name in paths else fnmatchcase(path, name)


def why_opaque(module: nn.Module, *, activation: bool = False) -> str | None:
    """Say why a norm's forward cannot be taken for that of its family, or None if it can.

    A class derived from a norm may compute anything; one that is parametrised computes its gain. Only classes that are
    known exactly are replaced: converters that go by ``isinstance`` drop what the subclass adds.

    Args:
        module: The norm.
        activation: Whether what takes its place can have its activation.
    """
    if isinstance(module, _LazyNormBase):
        return "is lazy and has no shape yet: run one forward of the model first"
    if is_parametrized(module):
        return "is parametrised (torch.nn.utils.parametrize): remove the parametrisation first"
    if type(module) not in (*BATCH, *INSTANCE, *OTHER):
        base = next(c.__name__ for c in type(module).__mro__[1:] if c in (*BATCH, *INSTANCE, *OTHER, *_FAMILIES))
        return f"is a {type(module).__name__}, a subclass of {base} that may compute something else: use a callable"
    if not activation and getattr(module, "activation", None) not in (None, "none"):
        return f"has {module.activation!r} fused into it, which is no part of a norm: apply that outside first"
    if set(module._parameters) - {"weight", "bias"}:
        return "is reparametrised (its gain is computed from other parameters): undo that first"
    return None


def why_hooked(module: nn.Module) -> str | None:
    """Say which forward hooks a module has, or None."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = [kind.strip("_").replace("_", " ") for kind in kinds if getattr(module, kind)]
    return f"has {' and '.join(found)} that would see other values" if found else None


def keep_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let ``new`` have the hooks of ``old``: the very dictionaries, so that their handles still remove them."""
    for name, value in vars(old).items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and name in vars(new):
            vars(new)[name] = value


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


def _may_be_norm(site: Site) -> bool:
    module = site.module
    if "parametrizations" in site.path.split(".") or isinstance(module, (NormThen, ChannelsFirst)):
        return False
    if is_known_norm(module) or isinstance(module, nn.LocalResponseNorm):
        return True
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return False
    if any(p.numel() != max(p.shape, default=1) for p in module.parameters()):
        return False
    if running(module) is not None or "norm" in type(module).__name__.lower():
        return True
    return all(isinstance(child, _BEHIND) for child in module.children()) and normalizes(module)
