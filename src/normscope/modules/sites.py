"""Which modules of a model are norms, and which bear weight."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch.nn import GroupNorm, LayerNorm, LocalResponseNorm, Module, Parameter, RMSNorm
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from normscope._errors import UsageError
from normscope.modules.tree import own_parameters, walk

_KNOWN = (_BatchNorm, _InstanceNorm, GroupNorm, LayerNorm, RMSNorm)
_NORMS = (_NormBase, GroupNorm, LayerNorm, LocalResponseNorm)


def normalizes(module: Module) -> bool:
    """Whether a module normalizes as far as its class tells: torch's kinds, subclasses, childless modules named a norm.

    A module with a running mean and variance counts too, whatever its name: a norm and an activation in one, say.

    Asked where a model is only looked at: probes group layers by it, and a norm of the user's own counts too.
    """
    named = "norm" in type(module).__name__.lower() and next(module.children(), None) is None
    return isinstance(module, _NORMS) or named or running(module) is not None


def running(module: Module) -> tuple[str, str] | None:
    """Return the names of the buffers that hold a norm's running mean and variance, by whatever names; or None.

    They are told by what they are called, and by being vectors of one length.
    """
    vectors = {name: b for name, b in module._buffers.items() if b is not None and b.ndim == 1}
    for mean in (name for name in vectors if "mean" in name):
        for var in (name for name in vectors if "var" in name):
            prefix = mean.partition("mean")[0]
            if prefix and var.startswith(prefix) and vectors[mean].shape == vectors[var].shape:
                return mean, var
    return None


def is_known_norm(module: Module) -> bool:
    """Whether a module is a batch, instance, group, layer or RMS norm, or of a class derived from one.

    Asked where a norm is changed or judged by what its kind does, in surgery and rules: a norm of the user's own may
    compute anything, and ``LocalResponseNorm`` has neither statistics nor a gain.
    """
    return isinstance(module, _KNOWN)


class Tree:
    """The modules of a model, walked over once for all that ask for some of them at the same time.

    Args:
        model: The model.

    Attributes:
        modules: Every module once, with its qualified name.
        marks: What a module's answers are kept by: itself, its class and the number of its parameters.
    """

    __slots__ = ("marks", "modules")

    def __init__(self, model: Module) -> None:
        self.modules = walk(model)
        self.marks = [(id(module), type(module), len(module._parameters)) for _, module in self.modules]


def norms(model: Module, tree: Tree | None = None) -> dict[str, Module]:
    """Return the modules that normalize."""
    return sites_where(model, normalizes, tree)


def bears_weight(module: Module) -> bool:
    """Whether ``module`` owns a parameter of two axes or more: Linear, Conv, Embedding, recurrent layers, ..."""
    return not normalizes(module) and any(parameter.ndim >= 2 for _, parameter in own_parameters(module))


def named_sites(model: Module) -> Iterator[tuple[str, Module]]:
    """Yield every module once under its first qualified name, leaving out the insides of parametrizations."""
    yield from _named(walk(model))


def _named(modules: Iterable[tuple[str, Module]]) -> Iterator[tuple[str, Module]]:
    for name, module in modules:
        if "parametrizations" not in name.split("."):
            yield name, module


_Found = tuple[list[tuple[int, type, int]], list[tuple[str, "ref[Module]"]]]
_found: "WeakKeyDictionary[Module, dict[Hashable, _Found]]" = WeakKeyDictionary()


def sites_where(model: Module, wanted: Callable[[Module], bool], tree: Tree | None = None) -> dict[str, Module]:
    """Return the modules for which ``wanted`` holds by qualified name, in the order in which they are registered.

    The answer is kept as of ``kept_sites``. ``wanted`` must be a function of the module alone.
    """
    tree = tree or Tree(model)
    return kept_sites(
        model, wanted, tree, lambda: {name: module for name, module in _named(tree.modules) if wanted(module)}
    )


def kept_sites(model: Module, key: Hashable, tree: Tree, find: Callable[[], dict[str, Module]]) -> dict[str, Module]:
    """Return the modules that ``find()`` finds, by qualified name.

    The answer is kept as long as the model has the same modules with as many parameters: asked at every step, it is
    a walk over the tree, if that is not given.

    Args:
        model: The model.
        key: What is asked; the same question must have the same answer as long as the modules are the same.
        tree: The modules of the model.
        find: Called where no answer is known.
    """
    known = _found.setdefault(model, {})
    if key in known and known[key][0] == tree.marks:
        found = {name: module for name, held in known[key][1] if (module := held()) is not None}
        if len(found) == len(known[key][1]):
            return found
    found = find()
    known[key] = tree.marks, [(name, ref(module)) for name, module in found.items()]
    return found


def weight_layers(model: Module, tree: Tree | None = None) -> dict[str, Module]:
    """Return the weight-bearing layers by qualified name, in the order in which they are registered."""
    return sites_where(model, bears_weight, tree)


def pre_activations(model: Module, tree: Tree | None = None) -> dict[str, Module]:
    """Return the norms and the layers that bear weight: their outputs are what non-linearities see."""
    return sites_where(model, _pre_activates, tree)


def batch_norms(model: Module, tree: Tree | None = None) -> dict[str, Module]:
    """Return the batch norms, torch's and those made from them."""
    return sites_where(model, _is_batch_norm, tree)


def tracking(model: Module) -> dict[str, Any]:
    """Return the batch norms that keep running statistics, by qualified name."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }


def _pre_activates(module: Module) -> bool:
    return normalizes(module) or bears_weight(module)


def _is_batch_norm(module: Module) -> bool:
    return isinstance(module, _BatchNorm)


def uses_batch(module: Module) -> bool:
    """Whether a batch norm normalizes by the statistics of the batch at hand rather than by running ones."""
    return module.training or getattr(module, "running_mean", None) is None


def weights(module: Module) -> list[Parameter]:
    """Return the module's own parameters of two axes or more."""
    return [parameter for _, parameter in own_parameters(module) if parameter.ndim >= 2]


def chosen(model: Module, sites: Sequence[str]) -> dict[str, Module]:
    """Return the modules with the given qualified names.

    Raises:
        UsageError: The model has no module of such a name.
    """
    known = dict(model.named_modules())
    missing = [site for site in sites if site not in known]
    if missing:
        raise UsageError(f"the model has no module {missing[0]!r}; it has {', '.join(filter(None, known))}")
    return {site: known[site] for site in sites}
