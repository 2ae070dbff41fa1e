"""How a loss calls the model: the arguments of each outermost call of the model or of a part of it."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree

from normscope.modules.tree import walk


@dataclass(slots=True)
class Call:
    """One call of the model, or of a part of it that the loss calls by itself.

    Attributes:
        path: Qualified name of what was called; empty for the model.
        module: What was called.
        args: Its positional arguments, tensors copied.
        kwargs: Its keyword arguments, tensors copied.
        given: The tensors as they were given.
        modes: Every module of it with its mode.
        made: The tensors that it returned, as they were returned.
    """

    path: str
    module: Module
    args: Any
    kwargs: Any
    given: list[Tensor]
    modes: list[tuple[Module, bool]]
    made: list[Tensor] = field(default_factory=list)


def outermost_calls(model: Module, act: Callable[[], Any], *, most: int = 4) -> list[Call]:
    """Return the first calls of a model, or of the parts of it that are called by themselves, while a function runs.

    Args:
        model: The model.
        act: Called without arguments; what it raises is raised.
        most: How many calls are kept.
    """
    calls: list[Call] = []
    under_way: list[Module] = []

    def enter(path: str, module: Module, args: Any, kwargs: Any) -> None:
        under_way.append(module)
        if len(under_way) == 1 and len(calls) < most:
            given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            modes = [(part, part.training) for part in module.modules()]
            calls.append(Call(path, module, copied(args), copied(kwargs), given, modes))

    def leave(module: Module, _args: Any, output: Any) -> None:
        if module in under_way:
            del under_way[under_way.index(module) :]
        if not under_way and calls and calls[-1].module is module:
            calls[-1].made = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]

    with ExitStack() as hooks:
        for path, module in walk(model):

            def before(module: Module, args: Any, kwargs: Any, path: str = path) -> None:
                enter(path, module, args, kwargs)

            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        act()
    return calls


def copied(given: Any) -> Any:
    """Return arguments with copies in the place of their tensors."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), given)


def cast(given: Any, dtype: torch.dtype) -> Any:
    """Return arguments with their floating-point tensors in another type."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, given)
