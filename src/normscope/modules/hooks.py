"""Hooks of modules, and a forward that takes the place of another."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)

_PLAIN = (Tensor, Parameter)


class Hook:
    """A function as a hook of a module that can be saved and copied, in the middle of a training step too.

    A saved module has in its place a function of Python's own that does nothing. A deep copy has an idle hook, which
    ``Hook.clear_copies`` takes off when the step ends.

    Args:
        act: What to call; None for an idle hook.
    """

    __slots__ = ("__weakref__", "_act")
    _copies: ClassVar[WeakSet[Any]] = WeakSet()

    def __init__(self, act: Callable[..., Any] | None = None) -> None:
        self._act = act

    def __call__(self, *args: Any) -> Any:
        """Call the function, but not under ``torch.func.vmap``: no values can be read there."""
        return None if self._act is None or under_vmap() else self._act(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        """Have a pickle hold a function that does nothing."""
        return getattr, (nullcontext(), "__exit__")

    def __deepcopy__(self, _: Any) -> "Hook":
        """Return an idle hook, to be taken off later."""
        copied = Hook()
        Hook._copies.add(copied)
        return copied

    @staticmethod
    def clear_copies() -> None:
        """Take idle hooks off the deep copies that were made of modules."""
        if not Hook._copies:
            return
        for module in [found for found in gc.get_objects() if issubclass(type(found), Module)]:
            kinds = [hooks for name in HOOKS if (hooks := vars(module).get(name))]
            idle = [key for hooks in kinds for key, hook in hooks.items() if isinstance(hook, Hook) and not hook._act]
            for hooks in kinds:
                for key in idle:
                    hooks.pop(key, None)
        Hook._copies.clear()


class ForwardHooks:
    """Forward hooks of many modules under one number, which come off together.

    Set and removed at a fifth of the time of ``register_forward_hook``, which makes a handle for each.
    """

    __slots__ = ("_held", "_number")

    def __init__(self) -> None:
        self._number = RemovableHandle(OrderedDict()).id  # no other hook has it
        self._held: list[dict[int, Any]] = []

    def add_before(self, module: Module, act: Callable[[Module, Any, Any], None]) -> None:
        """Call ``act(module, arguments, keywords)`` before each call of a module."""
        self._set(module._forward_pre_hooks, Hook(act))
        self._set(module._forward_pre_hooks_with_kwargs, True)

    def add_after(self, module: Module, act: Callable[[Module, Any, Any], None]) -> None:
        """Call ``act(module, arguments, output)`` after each call of a module."""
        self._set(module._forward_hooks, Hook(act))

    def _set(self, held: dict[int, Any], value: Any) -> None:
        held[self._number] = value
        self._held.append(held)

    def remove(self) -> None:
        """Take all of them off."""
        for held in self._held:
            held.pop(self._number, None)
        self._held.clear()


class TensorHooks:
    """Hooks on the gradients of many tensors under one number, which come off together; as ``ForwardHooks``."""

    __slots__ = ("_handles", "_held", "_number")

    def __init__(self) -> None:
        self._number = RemovableHandle(OrderedDict()).id
        self._held: list[dict[int, Any]] = []
        self._handles: list[RemovableHandle] = []  # those of classes of tensors that torch itself asks

    def on_gradient(self, tensor: Tensor, act: Callable[[Tensor], None]) -> None:
        """Call ``act(gradient)`` whenever the gradient of a tensor has been computed, as ``Tensor.register_hook``."""
        if type(tensor) not in _PLAIN:
            self._handles.append(tensor.register_hook(act))
            return
        if tensor._backward_hooks is None:
            tensor._backward_hooks = OrderedDict()
            if tensor.grad_fn is not None:
                tensor.grad_fn._register_hook_dict(tensor)
        self._set(tensor._backward_hooks, act)

    def after_accumulation(self, leaf: Tensor, act: Callable[[Tensor], None]) -> None:
        """Call ``act(leaf)`` whenever a gradient was added to ``leaf.grad``."""
        if type(leaf) not in _PLAIN:
            self._handles.append(leaf.register_post_accumulate_grad_hook(act))
            return
        if leaf._post_accumulate_grad_hooks is None:
            leaf._post_accumulate_grad_hooks = OrderedDict()
        self._set(leaf._post_accumulate_grad_hooks, act)

    def _set(self, held: Any, act: Callable[[Tensor], None]) -> None:
        held[self._number] = act
        self._held.append(held)

    def remove(self) -> None:
        """Take all of them off."""
        for held in self._held:
            held.pop(self._number, None)
        for handle in self._handles:
            handle.remove()
        self._held.clear()
        self._handles.clear()


def under_vmap() -> bool:
    """Whether ``torch.func.vmap`` is at work: then tensors stand for several, and none has values that can be read."""
    if torch.compiler.is_compiling():  # a compiled wrapper traces hooks, too, and has no way into functorch's stack
        return False
    if not torch._C._are_functorch_transforms_active():
        return False
    functorch = torch._C._functorch
    stack = functorch.get_interpreter_stack() or []
    return any(level.key() == functorch.TransformType.Vmap for level in stack)


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


def call_new_hooks(module: Module, known: set[int], args: Any, kwargs: Any) -> None:
    """Call pre-hooks that were set during a call of the module's hooks: torch calls them from the next call on."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if key not in known:
            if key in module._forward_pre_hooks_with_kwargs:
                hook(module, args, kwargs)
            else:
                hook(module, args)
