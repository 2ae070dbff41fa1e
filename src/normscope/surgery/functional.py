"""Norms and activations that a model calls as functions in its forward: found by name and line, replaced by nobody.

Two ways, for each sees what the other cannot. The source of the forwards is read: it shows calls in branches that an
example does not take. A forward of an example is watched: it shows calls in helpers, and which module makes them. What
a model computes by hand, from means and variances, neither shows.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

NAMES = frozenset(
    {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "native_batch_norm"}
    | {"native_layer_norm", "native_group_norm", "cudnn_batch_norm"}
)
ACTIVATIONS = frozenset(
    {"relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus"}
    | {"sigmoid", "logsigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "softsign", "prelu", "rrelu"}
)
_NOT_USERS = ("torch", "normscope")


@dataclass(frozen=True, slots=True)
class FunctionalCall:
    """A norm or an activation that is called as a function.

    Attributes:
        path: Qualified name of the module whose forward calls it; ``""`` for the model itself.
        function: The function's name.
        line: Where, as ``net.py:12``.
    """

    path: str
    function: str
    line: str

    def __str__(self) -> str:
        return f"{self.path or '(model)'}: calls {self.function} at {self.line}"


def functional_norms(model: nn.Module, run: Callable[[], Any] | None = None) -> list[FunctionalCall]:
    """Find the norms that a model calls as functions, in the forwards of its norms too.

    Args:
        model: The model.
        run: Runs the model on an example, if there is one. Nothing of it is undone here.
    """
    return [call for call in functional_calls(model, run) if call.function in NAMES]


def functional_calls(model: nn.Module, run: Callable[[], Any] | None = None) -> list[FunctionalCall]:
    """Find the norms and the activations that a model calls as functions.

    Args:
        model: The model.
        run: As of ``functional_norms``.
    """
    found = {(call.path, call.line, call.function): call for call in _in_source(model)}
    if run is not None:
        with watched(model) as seen:
            run()
        found |= {(call.path, call.line, call.function): call for call in seen}
    return list(found.values())


def without_modules(model: nn.Module, found: Sequence[Any]) -> tuple[str, ...]:
    """Say which norms of a model are no modules, and that it has no other where none was found.

    Args:
        model: The model.
        found: Places of the norms that are modules.
    """
    inside = [f"{site.path}." for site in found]
    calls = [call for call in functional_norms(model) if not any(f"{call.path}.".startswith(path) for path in inside)]
    notes = [f"{call}: a norm that is called as a function stays as it is" for call in calls]
    return (*([] if found else ["no module of the model was seen to be a norm"]), *notes)


@contextmanager
def watched(model: nn.Module) -> Iterator[list[FunctionalCall]]:
    """Note every norm and activation that is called as a function while the block runs.

    Args:
        model: Its modules are named, torch's own norms among them; calls outside its forward are not meant.

    Yields:
        What was found so far.
    """
    names = {module: path for path, module in model.named_modules()}
    running: list[nn.Module] = []
    found: dict[tuple[str, str, str], FunctionalCall] = {}
    seen: list[FunctionalCall] = []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(func, "__name__", "")
            if running and (name in NAMES or (name in ACTIVATIONS and not _is_activation(running[-1]))):
                call = FunctionalCall(names[running[-1]], name, _line(sys._getframe(1)))
                if found.setdefault((call.path, call.line, call.function), call) is call:
                    seen.append(call)
            return func(*args, **(kwargs or {}))

    def leave(module: nn.Module, *_: Any) -> None:
        if running and running[-1] is module:
            running.pop()

    # Not the hooks of all modules at once: torch warns of those where a model is compiled.
    hooks = [module.register_forward_pre_hook(lambda module, _: running.append(module)) for module in names]
    hooks += [module.register_forward_hook(leave, always_call=True) for module in names]
    try:
        with Spy():
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _is_activation(module: nn.Module) -> bool:
    """Say whether a module is an activation of torch's, which calls the function for who uses the module."""
    return any(kind.__module__ == "torch.nn.modules.activation" for kind in type(module).__mro__)


def _line(frame: FrameType | None) -> str:
    first = frame
    while frame is not None:
        home = str(frame.f_globals.get("__name__", ""))
        if home.partition(".")[0] not in _NOT_USERS:
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "(unknown)" if first is None else f"{Path(first.f_code.co_filename).name}:{first.f_lineno}"


def _in_source(model: nn.Module) -> Iterator[FunctionalCall]:
    known: dict[type, list[tuple[str, str]]] = {}
    for path, module in model.named_modules():
        kind = type(module)
        if kind not in known:
            known[kind] = [each for function in _forwards(kind) for each in _calls(function)]
        yield from (FunctionalCall(path, name, line) for name, line in known[kind])


def _forwards(kind: type) -> Iterator[FunctionType]:
    """Yield ``forward`` and the other methods that classes of the user's or of other libraries give a module."""
    taken: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in (*_NOT_USERS, "builtins"):
            continue
        for name, held in vars(base).items():
            if isinstance(held, FunctionType) and name not in taken:
                taken.add(name)
                yield held


def _calls(function: FunctionType) -> Iterator[tuple[str, str]]:
    if not (NAMES | ACTIVATIONS) & set(function.__code__.co_names):
        return
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError, IndentationError):
        return  # typed at a prompt, say: only a forward shows its calls
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := _torchs(node.func, function.__globals__)) in NAMES | ACTIVATIONS:
            yield str(name), f"{Path(function.__code__.co_filename).name}:{first + node.lineno - 1}"


def _torchs(called: ast.expr, names: Mapping[str, Any]) -> str | None:
    """Return the name of a function of torch's that is called; None for all others, such as ``self.batch_norm``."""
    if isinstance(called, ast.Name):
        found = names.get(called.id)
        return called.id if str(getattr(found, "__module__", "") or "torch").startswith("torch") and found else None
    chain = called
    while isinstance(chain, ast.Attribute):
        chain = chain.value
    if not isinstance(called, ast.Attribute) or not isinstance(chain, ast.Name):
        return None
    root = names.get(chain.id)
    return called.attr if isinstance(root, ModuleType) and root.__name__.partition(".")[0] == torch.__name__ else None
