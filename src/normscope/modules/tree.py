"""Walks over the modules of a model."""

from collections.abc import Iterator, Mapping

from torch.nn import Module, Parameter


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
