"""Walks over the modules of a model."""

from collections.abc import Iterator, Mapping

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
