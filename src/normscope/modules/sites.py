"""Where probes look: weight-bearing layers, norms, and the tensor in whatever a module returns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor
from torch.nn import GroupNorm, LayerNorm, LocalResponseNorm, Module, Parameter
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from normscope._errors import UsageError

_NORMS = (_NormBase, GroupNorm, LayerNorm, LocalResponseNorm)


def own_parameters(module: Module) -> Iterator[tuple[str, Parameter]]:
    """Yield the parameters that belong to ``module`` itself: its own, and those behind its parametrizations."""
    seen: set[int] = set()  # not by named_parameters: this is asked of every module at every step
    for name, parameter in module._parameters.items():
        if parameter is not None and id(parameter) not in seen:
            seen.add(id(parameter))
            yield name, parameter
    hidden = module._modules.get("parametrizations")
    if hidden is not None:
        for name, parameter in hidden.named_parameters():
            yield f"parametrizations.{name}", parameter


def is_norm(module: Module) -> bool:
    """Whether ``module`` normalizes: one of torch's kinds, a subclass, or a childless module named like one."""
    named = "norm" in type(module).__name__.lower() and next(module.children(), None) is None
    return isinstance(module, _NORMS) or named


def norms(model: Module) -> dict[str, Module]:
    """Return the modules that normalize."""
    return sites_where(model, is_norm)


def bears_weight(module: Module) -> bool:
    """Whether ``module`` owns a parameter of two axes or more: Linear, Conv, Embedding, recurrent layers, ..."""
    return not is_norm(module) and any(parameter.ndim >= 2 for _, parameter in own_parameters(module))


def named_sites(model: Module) -> Iterator[tuple[str, Module]]:
    """Yield every module once under its first qualified name, leaving out the insides of parametrizations."""
    for name, module in walk(model):
        if "parametrizations" not in name.split("."):
            yield name, module


_Found = tuple[list[tuple[int, type, int]], list[tuple[str, "ref[Module]"]]]
_found: "WeakKeyDictionary[Module, dict[Callable[[Module], bool], _Found]]" = WeakKeyDictionary()


def sites_where(model: Module, wanted: Callable[[Module], bool]) -> dict[str, Module]:
    """Return the modules for which ``wanted`` holds by qualified name, in the order in which they are registered.

    The answer is kept as long as the model has the same modules with as many parameters: asked at every step, it is
    a walk over the tree. ``wanted`` must be a function of the module alone.
    """
    tree = [(id(module), type(module), len(module._parameters)) for _, module in walk(model)]
    known = _found.setdefault(model, {})
    if wanted in known and known[wanted][0] == tree:
        found = {name: module for name, held in known[wanted][1] if (module := held()) is not None}
        if len(found) == len(known[wanted][1]):
            return found
    found = {name: module for name, module in named_sites(model) if wanted(module)}
    known[wanted] = tree, [(name, ref(module)) for name, module in found.items()]
    return found


def walk(model: Module) -> list[tuple[str, Module]]:
    """Return every module once with its qualified name, as ``named_modules`` yields them, at a fraction of its time."""
    seen: set[Module] = set()
    found: list[tuple[str, Module]] = []

    def visit(module: Module, name: str) -> None:
        seen.add(module)
        found.append((name, module))
        for key, child in module._modules.items():
            if child is not None and child not in seen:
                visit(child, f"{name}.{key}" if name else key)

    visit(model, "")
    return found


def weight_layers(model: Module) -> dict[str, Module]:
    """Return the weight-bearing layers by qualified name, in the order in which they are registered."""
    return sites_where(model, bears_weight)


def pre_activations(model: Module) -> dict[str, Module]:
    """Return the norms and the layers that bear weight: their outputs are what non-linearities see."""
    return sites_where(model, _pre_activates)


def batch_norms(model: Module) -> dict[str, Module]:
    """Return the batch norms, torch's and those made from them."""
    return sites_where(model, _is_batch_norm)


def _pre_activates(module: Module) -> bool:
    return is_norm(module) or bears_weight(module)


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


def leading_tensor(output: Any) -> Tensor | None:
    """Return the first floating-point tensor in what a module returned, or None."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return next((found for part in output if (found := leading_tensor(part)) is not None), None)
    return None
