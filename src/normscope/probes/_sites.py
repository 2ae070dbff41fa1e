"""Where probes look: weight-bearing layers, norms, and the tensor in whatever a module returns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
    return {name: module for name, module in named_sites(model) if is_norm(module)}


def bears_weight(module: Module) -> bool:
    """Whether ``module`` owns a parameter of two axes or more: Linear, Conv, Embedding, recurrent layers, ..."""
    return not is_norm(module) and any(parameter.ndim >= 2 for _, parameter in own_parameters(module))


def named_sites(model: Module) -> Iterator[tuple[str, Module]]:
    """Yield every module once under its first qualified name, leaving out the insides of parametrizations."""
    for name, module in model.named_modules():
        if "parametrizations" not in name.split("."):
            yield name, module


def weight_layers(model: Module) -> dict[str, Module]:
    """Return the weight-bearing layers by qualified name, in the order in which they are registered."""
    return {name: module for name, module in named_sites(model) if bears_weight(module)}


def pre_activations(model: Module) -> dict[str, Module]:
    """Return the norms and the layers that bear weight: their outputs are what non-linearities see."""
    return {name: module for name, module in named_sites(model) if is_norm(module) or bears_weight(module)}


def batch_norms(model: Module) -> dict[str, Module]:
    """Return the batch norms, torch's and those made from them."""
    return {name: module for name, module in named_sites(model) if isinstance(module, _BatchNorm)}


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
