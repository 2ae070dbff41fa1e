"""Walks over the modules of a model."""

from collections.abc import Mapping

from torch.nn import Module, Parameter


def walk(model: Module) -> list[tuple[str, Module]]:
    """Return every module once with its qualified name, as ``named_modules`` yields them, at a fraction of its time."""
    found: list[tuple[str, Module]] = []
    _visit(model, "", set(), found)
    return found


# No function inside ``walk``: it would hold itself and all modules until Python's collector runs.
def _visit(module: Module, name: str, seen: set[Module], found: list[tuple[str, Module]]) -> None:
    seen.add(module)
    found.append((name, module))
    for key, child in module._modules.items():
        if child is not None and child not in seen:
            _visit(child, f"{name}.{key}" if name else key, seen, found)


def is_childless(module: Module) -> bool:
    """Whether a module has no module inside it."""
    return not any(child is not None for child in module._modules.values())


def childless(modules: Mapping[str, Module]) -> dict[str, Module]:
    """Return the modules that have none inside them."""
    return {path: module for path, module in modules.items() if is_childless(module)}


def own_parameters(module: Module) -> list[tuple[str, Parameter]]:
    """Return the parameters that belong to ``module`` itself: its own, and those behind its parametrizations."""
    found: dict[int, tuple[str, Parameter]] = {}  # not by named_parameters: this is asked of every layer at every step
    for name, parameter in module._parameters.items():
        if parameter is not None:
            found.setdefault(id(parameter), (name, parameter))
    own = list(found.values())
    hidden = module._modules.get("parametrizations")
    if hidden is not None:
        own += [(f"parametrizations.{name}", parameter) for name, parameter in hidden.named_parameters()]
    return own
