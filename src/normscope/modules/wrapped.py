"""Models and optimizers in wrappers: compiled, replicated over processes, or handed out by a trainer."""

import sys
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import torch
from torch.nn import DataParallel, Module
from torch.nn.parallel import DistributedDataParallel

from normscope._errors import UsageError
from normscope.modules.tree import walk


def unwrap(model: Module) -> Module:
    """Return the model inside ``torch.compile`` and data-parallel wrappers."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile's wrapper
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


def is_compiled(model: Module) -> bool:
    """Whether the model or a module of it runs compiled."""
    return any(runs_compiled(vars(module)) for _, module in walk(model))


def runs_compiled(attributes: dict[str, Any]) -> bool:
    """Whether the object with these attributes is a module that runs compiled itself."""
    return (
        "_orig_mod" in attributes.get("_modules", ())
        or attributes.get("_compiled_call_impl") is not None
        or ("forward" in attributes and hasattr(attributes["forward"], "_torchdynamo_orig_callable"))
    )


def calls_eagerly(model: Module) -> bool:
    """Whether hooks of the outermost module itself stay outside what is compiled."""
    return getattr(model, "_compiled_call_impl", None) is None


def eagerly(compiled: bool) -> AbstractContextManager[Any]:
    """Return a context in which compiled modules run as they are written; nothing is compiled anew."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def hookable(model: Module) -> list[Module]:
    """Return the modules of a model on which a hook stays outside what is compiled or replicated to other devices."""
    found: list[Module] = []
    seen: set[Module] = set()

    def visit(module: Module) -> None:
        if module in seen or not calls_eagerly(module):
            return
        seen.add(module)
        if not isinstance(module, DistributedDataParallel):  # its module is called as any other
            found.append(module)
        if not isinstance(module, DataParallel) and not runs_compiled(vars(module)):
            for child in module._modules.values():
                if child is not None:
                    visit(child)

    visit(model)
    return found


def unwrap_optimizer(optimizer: Any) -> Any:
    """Return the optimizer inside a trainer's wrappers (Accelerate, Lightning): the first that calls its step hooks.

    A wrapper that holds no optimizer is returned as it is.
    """
    seen: list[Any] = []
    found = optimizer
    while not calls_step_hooks(found):
        seen.append(found)
        held = (vars(found).get(name) for name in ("optimizer", "_optimizer"))
        inner = next((one for one in held if one is not None), None)
        if inner is None or any(inner is one for one in seen) or not hasattr(inner, "param_groups"):
            return optimizer
        found = inner
    return found


def scaler_that_steps() -> torch.amp.GradScaler | None:
    """Return the gradient scaler whose ``step`` is under way, found among the calls that led here; None if none is."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in ("step", "_maybe_opt_step") and isinstance(
            owner := frame.f_locals.get("self"), torch.amp.GradScaler
        ):
            return owner
        frame = frame.f_back
    return None


def calls_step_hooks(optimizer: Any) -> bool:
    """Whether hooks can be set on the steps of an optimizer: not where a subclass has left out torch's constructor."""
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", None)
    return isinstance(hooks, dict) and hasattr(optimizer, "register_step_pre_hook")


def refuse_fixed(model: Module) -> None:
    """Refuse a module whose code torch holds: its hooks and parameters cannot be reached, or it has no layers.

    Raises:
        UsageError: The model or a module of it is traced, scripted or exported.
    """
    for name, module in model.named_modules():
        fixed = "traced or scripted" if isinstance(module, torch.jit.ScriptModule) else ""
        if isinstance(module, torch.fx.GraphModule) and any(
            isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
        ):
            fixed = "exported"
        if fixed:
            what = f"its module {name!r}" if name else "the model"
            raise UsageError(f"{what} is {fixed} and cannot be looked into: give the module it is made of")


def rank_of_many() -> int | None:
    """Return this process's rank if it is one of several that train together, else None."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() < 2:
        return None
    return distributed.get_rank()


def world_size() -> int | None:
    """Return how many processes train together; None if this one trains alone."""
    return None if rank_of_many() is None else torch.distributed.get_world_size()
