"""Hooks of modules, and a forward that takes the place of another."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn import Module
from torch.nn.modules import module as torch_module

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def silence(module: Module) -> None:
    """Take the hooks off, but for those by which torch itself computes weights (weight and spectral norm, pruning)."""
    for kind in HOOKS:
        hooks = vars(module).get(kind)
        if hooks:
            vars(module)[kind] = OrderedDict((key, hook) for key, hook in hooks.items() if _computes_weight(hook))


def _computes_weight(hook: Any) -> bool:
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return str(home).startswith("torch.nn.utils.")


@contextmanager
def no_global_hooks() -> Iterator[None]:
    """Take the hooks that hold for all modules off until the block ends."""
    kinds = [name for name in vars(torch_module) if name.startswith("_global_") and name.endswith("_hooks")]
    kept = {name: getattr(torch_module, name) for name in kinds}
    try:
        for name in kinds:
            setattr(torch_module, name, OrderedDict())
        yield
    finally:
        for name, hooks in kept.items():
            setattr(torch_module, name, hooks)


@contextmanager
def forward_replaced(
    modules: Iterable[Module], make: Callable[[Module, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Let modules compute with another ``forward`` until the block ends.

    Args:
        modules: The modules.
        make: Called with a module and its ``forward``; returns the function that takes its place.
    """
    kept = [(module, vars(module).get("forward")) for module in modules]
    try:
        for module, _ in kept:
            vars(module)["forward"] = make(module, module.forward)
        yield
    finally:
        for module, own in kept:
            if own is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own
