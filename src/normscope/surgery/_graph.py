"""Who reads whose output: a model's flow between the modules that matter, seen in one of three ways.

1. ``torch.fx`` symbolic trace: all inputs at once; refuses control flow that depends on values or shapes.
2. ``torch.export`` with an example: branches on shapes are those of the example; refuses those on values.
3. An example forward under a watch that sees every torch function. If anything turned a tensor into a Python value (a
   branch may hang on it), what was seen holds for that example only, and nothing is concluded from it.
"""

import inspect
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from normscope.modules.batches import tensors
from normscope.modules.call import arguments, run
from normscope.modules.state import traceless


class UnseenError(Exception):
    """The model's flow could not be seen this way."""


@dataclass
class Flow:
    """How values flow between the modules of interest.

    Attributes:
        seen_by: How it was seen, in words.
        calls: How often each module is called in one forward; modules by qualified name.
        source: What made each module's input: another module's name, or words in parentheses.
        readers: What reads each module's output, likewise.
        loose: Parameters and buffers that are read outside the forward of their module.
        several: Modules that are called with more than their input: a mask, say.
    """

    seen_by: str
    calls: Counter[str] = field(default_factory=Counter)
    source: dict[str, str] = field(default_factory=dict)
    readers: dict[str, list[str]] = field(default_factory=dict)
    loose: set[str] = field(default_factory=set)
    several: set[str] = field(default_factory=set)


def flow(model: nn.Module, leaves: Mapping[nn.Module, str], example: Any, missing: object) -> tuple[Flow | None, str]:
    """See the flow by the first way that works.

    Args:
        model: The model; left as it was.
        leaves: The modules of interest and their first qualified names.
        example: Input to the model, or ``missing``.
        missing: Stands for no example.

    Returns:
        The flow, or None and why none was seen.
    """
    ways: list[Callable[[], Flow]] = [lambda: by_fx(model, leaves)]
    if example is not missing:
        ways += [lambda: by_export(model, leaves, example), lambda: by_example(model, leaves, example)]
    why = []
    for way in ways:
        try:
            with traceless(model):
                return way(), ""
        except UnseenError as error:
            why.append(str(error))
    return None, ("give example=: without one " if example is missing else "") + "; ".join(why)


def by_fx(model: nn.Module, leaves: Mapping[nn.Module, str]) -> Flow:
    """See the flow by symbolic trace."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return m in leaves or super().is_leaf_module(m, module_qualified_name)

    try:
        # An argument left at its default would be traced as given: `if mask is not None` would take the wrong branch.
        parameters = inspect.signature(model.forward).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        with _hushed():
            graph = Tracer().trace(model, concrete_args=defaults or None)
    except Exception as error:
        raise UnseenError(f"torch.fx: {_first_line(error)}") from error
    seen = Flow("torch.fx symbolic trace")

    def name(node: Any) -> str:
        if not isinstance(node, fx.Node):
            return "(a constant)"
        if node.op == "call_module" and (module := model.get_submodule(str(node.target))) in leaves:
            return leaves[module]
        if node.op in ("output", "placeholder"):
            return f"(the model's {'output' if node.op == 'output' else 'input'})"
        target = node.target
        return f"({node.op.replace('_', ' ')} {target if isinstance(target, str) else target.__name__})"

    for node in graph.nodes:
        if node.op == "get_attr":
            seen.loose.add(str(node.target))
        if node.op == "call_module" and not (path := name(node)).startswith("("):
            seen.calls[path] += 1
            if len(node.args) + len(node.kwargs) > 1:
                seen.several.add(path)
            seen.source[path] = name((*node.args, *node.kwargs.values(), None)[0])
            seen.readers.setdefault(path, []).extend(name(user) for user in node.users)
    return seen


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep torch from printing the graph of a forward that it cannot trace: the error says what there is to say."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def by_export(model: nn.Module, leaves: Mapping[nn.Module, str], example: Any) -> Flow:
    """See the flow in the exported program, whose nodes say in which module's call they arose."""
    args, kwargs = arguments(model, example)
    try:
        with _hushed():
            program = torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        raise UnseenError(f"torch.export: {_first_line(error)}") from error
    seen = Flow("torch.export of the example")
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}

    def owner(node: fx.Node) -> tuple[str, str]:
        """Return the module of interest in whose call a node arose, and that call; words if there is none."""
        if node.op == "output":
            return "(the model's output)", ""
        # The key tells one call of a module from the next; the path does not.
        for key, (path, _) in reversed((node.meta.get("nn_module_stack") or {}).items()):
            try:
                module = model.get_submodule(path.partition("@")[0])
            except AttributeError:
                continue
            if module in leaves:
                return leaves[module], key
        return (f"({node.target})" if node.op == "call_function" else "(the model's input)"), str(node.name)

    calls: dict[tuple[str, str], None] = {}
    for node in program.graph.nodes:
        home = owner(node)
        if node.op == "placeholder":
            if node.name in held:
                prefix, _, _ = held[node.name].rpartition(".")
                module = leaves.get(model.get_submodule(prefix))
                if any(owner(user)[0] != module and user.op != "output" for user in node.users):
                    seen.loose.add(held[node.name])
            continue
        if node.op != "call_function" or home[0].startswith("("):
            continue
        if home not in calls:
            calls[home] = None
            seen.calls[home[0]] += 1
        for made in node.all_input_nodes:
            if made.name not in held and owner(made) != home:
                seen.source.setdefault(home[0], owner(made)[0])
        outside = {owner(user): None for user in node.users if owner(user) != home}
        seen.readers.setdefault(home[0], []).extend(reader for reader, _ in outside)
    return seen


_HARMLESS = {
    "shape", "dtype", "device", "ndim", "layout", "requires_grad", "grad_fn", "is_leaf", "is_cuda", "is_sparse",
    "is_quantized", "is_meta", "is_mkldnn", "itemsize", "size", "dim", "numel", "is_contiguous", "stride",
    "is_floating_point", "is_complex", "__len__", "names",
}  # fmt: skip
_VALUES = {
    "__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "__array__", "equal", "allclose",
    "nonzero", "is_nonzero", "__contains__", "unique", "masked_select",
}  # fmt: skip


class _Watch(TorchFunctionMode):
    """Sees which functions read the outputs of the modules of interest."""

    def __init__(self, seen: Flow) -> None:
        super().__init__()
        self.seen = seen
        self.made: dict[int, tuple[Tensor, str]] = {}  # the tensor is held, so that its id stays its own
        self.inside: list[str] = []
        self.reads: list[tuple[str, str]] = []
        self.values: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = getattr(func.__self__, "__name__", name)
        if name in _VALUES and not self.inside:
            self.values.add(name)
        if name not in _HARMLESS and not self.inside:
            for tensor in tensors((args, kwargs)):
                if id(tensor) in self.made:
                    self.reads.append((self.made[id(tensor)][1], f"({name})"))
                if id(tensor) in self.held:
                    self.seen.loose.add(self.held[id(tensor)])
        return func(*args, **(kwargs or {}))

    held: Mapping[int, str] = {}


def by_example(model: nn.Module, leaves: Mapping[nn.Module, str], example: Any) -> Flow:
    """See the flow of one forward."""
    seen = Flow("an example forward")
    watch = _Watch(seen)
    names = {id(module): path for module, path in leaves.items()}
    watch.held = {
        id(t): f"{path}.{name}"
        for module, path in leaves.items()
        for name, t in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = names[id(module)]
        seen.calls[path] += 1
        if len(args) + len(kwargs) > 1:
            seen.several.add(path)
        given = tensors((args, kwargs))
        known = [watch.made[id(t)][1] for t in given if id(t) in watch.made]
        seen.source[path] = known[0] if len(known) == len(given) == 1 else "(what no module of interest made)"
        watch.reads.extend((made, path) for made in known)
        watch.inside.append(path)

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        watch.inside.pop()
        if isinstance(output, Tensor):
            watch.made[id(output)] = (output, names[id(module)])

    try:
        with torch.no_grad():
            for module in leaves:
                module.register_forward_pre_hook(enter, with_kwargs=True)
                module.register_forward_hook(leave)
            with watch:
                output = run(model, example)
    except Exception as error:
        raise UnseenError(f"an example forward: {_first_line(error)}") from error
    if watch.values:
        raise UnseenError(f"an example forward: Python reads values of tensors ({', '.join(sorted(watch.values))})")
    reads = watch.reads + [
        (watch.made[id(t)][1], "(the model's output)") for t in tensors(output) if id(t) in watch.made
    ]
    for made, reader in reads:
        seen.readers.setdefault(made, []).append(reader)
    return seen


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}{': ' * bool(text)}{text[:120]}"
