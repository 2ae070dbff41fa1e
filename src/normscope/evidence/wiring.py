"""How values flow between norms, layers and non-linearities, seen in the passes of the user's own loss."""

import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from normscope.evidence.activations import Activation, count, count_tails, function_kind
from normscope.evidence.case import Case
from normscope.evidence.passes import look
from normscope.evidence.sandbox import sandbox
from normscope.modules.batches import leading_tensor, tensors
from normscope.modules.hooks import under_vmap
from normscope.modules.sites import bears_weight, is_known_norm, normalizes

_SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "rsub"}
_PRODUCTS = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "where", "lerp", "addcmul", "einsum"}
_PRODUCTS |= {"matmul", "__matmul__", "bmm", "baddbmm", "scaled_dot_product_attention"}
_MOVES = {"transpose", "permute", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "einsum", "matmul", "bmm"}
_MOVES |= {"__matmul__", "adjoint", "rot90"}
_SHAPED = {"view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "cat", "concat", "stack"}
_ON_LAST = (nn.Linear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)


@dataclass(frozen=True, slots=True)
class _Tags:
    """What is known of a tensor.

    Attributes:
        made: Layers and norms whose output it is, passed on by functions.
        own: Norms whose output it is, not yet added to anything; ``through``: or added.
        axis: Which axis the layers before take for features: ``"last"`` or ``"second"``.
        acts: Activations whose output it is.
    """

    made: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    through: frozenset[str] = frozenset()
    axis: frozenset[str] = frozenset()
    acts: frozenset[tuple[str, int]] = frozenset()

    def __or__(self, other: "_Tags") -> "_Tags":
        return _Tags(*(getattr(self, name) | getattr(other, name) for name in self.__slots__))


_NONE = _Tags()


@dataclass
class Wiring:
    """What reads what, and what passes the non-linearities.

    Attributes:
        sizes: Root mean square of the output of each layer that bears weight, in order of first use.
        activations: By place and number of the call there.
        readers: For each norm what reads its output, passed on by functions that keep its shape: ``"sum"`` (it is
            added to something), ``"layer"``, ``"norm"`` or ``"other"``.
        before: For each norm which axis the layers before it take for features, ``"last"`` or ``"second"``.
        after: The same of the layers behind it.
        shapes: Shape of the input of each norm.
        sequences: Lengths of the second axis of what is known to be sequences ``(N, L, ...)``.
    """

    sizes: dict[str, float] = field(default_factory=dict)
    activations: dict[tuple[str, int], Activation] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)
    before: dict[str, set[str]] = field(default_factory=dict)
    after: dict[str, set[str]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sequences: set[int] = field(default_factory=set)


def watch_wiring(case: Case, batches: int) -> Wiring:
    """Look at the flow of values in passes over training batches, without gradient, that leave nothing behind.

    Raises:
        UsageError: The loader or the loss raises.
    """
    watcher = _Watcher()
    with sandbox(case), ExitStack() as stack:
        for path, module in case.model.named_modules():
            stack.callback(module.register_forward_pre_hook(partial(watcher.enter, path), with_kwargs=True).remove)
            leave = module.register_forward_hook(partial(watcher.leave, path), always_call=True)
            stack.callback(leave.remove)
        stack.enter_context(watcher)
        look(case, {}, batches, told=watcher.begin)
    return watcher.seen


class _Watcher(TorchFunctionMode):
    """Follows tensors from module to module through every function of torch's that is called between."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Wiring()
        self._stack: list[tuple[str, Module]] = []
        self._begun = False
        self._inside = 0  # layers and norms are looked at from outside
        self._calls: Counter[str] = Counter()
        self._tags: dict[int, tuple[Any, _Tags]] = {}
        self._sized: set[str] = set()

    def _of(self, tensor: Tensor) -> _Tags:
        held, tags = self._tags.get(id(tensor), (None, _NONE))
        return tags if held is not None and held() is tensor else _NONE

    def _mark(self, tensor: Tensor, tags: _Tags) -> None:
        self._tags[id(tensor)] = weakref.ref(tensor), tags

    def begin(self, _batch: int) -> None:
        """Begin to look: a pass before shows only whether the loss takes gradients."""
        self._begun = True

    # -- modules ------------------------------------------------------------------------------------------------------

    def enter(self, path: str, module: Module, args: Any, kwargs: Any) -> None:
        """Note what a layer or norm reads."""
        if not self._begun:
            return
        if not self._stack:
            self._calls.clear()
            self._tags.clear()
            self._inside = 0
        self._stack.append((path, module))
        if not _is_unit(module):
            return
        self._inside += 1
        if self._inside > 1:
            return
        kind = "norm" if _is_norm(module) else "layer"
        x = leading_tensor((*args, *kwargs.values()))
        for tensor in tensors((args, kwargs)):
            tags = self._of(tensor)
            for norm in tags.own:
                self.seen.readers.setdefault(norm, set()).add(kind)
            for act in tags.acts:
                self.seen.activations[act].is_read = True
            if kind == "layer":
                for norm in tags.through:
                    self.seen.after.setdefault(norm, set()).add(_axis_of(module))
        if x is not None and x.ndim == 3 and isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            self.seen.sequences.add(x.shape[1 if module.batch_first else 0])
        if kind == "norm" and x is not None:
            self.seen.shapes.setdefault(path, tuple(x.shape))
            self.seen.before.setdefault(path, set()).update(self._of(x).axis)

    def leave(self, path: str, module: Module, args: Any, output: Any) -> None:
        """Note what a layer or norm has made."""
        if not self._begun:
            return
        if self._stack and self._stack[-1][1] is module:
            self._stack.pop()
        if not _is_unit(module):
            return
        self._inside -= 1
        y = leading_tensor(output)
        if self._inside or y is None:
            return
        if _is_norm(module):
            x = leading_tensor(args)
            axis = self._of(x).axis if x is not None and x.shape == y.shape else frozenset()
            through = self._of(x).through if x is not None and x.shape == y.shape else frozenset()
            name = frozenset([path])
            self._mark(y, _Tags(made=name, own=name, through=through | name, axis=axis))
            return
        if isinstance(module, nn.Embedding) and y.ndim == 3:
            self.seen.sequences.add(y.shape[1])
        if path not in self._sized and y.numel():
            self._sized.add(path)
            self.seen.sizes[path] = float(torch.linalg.vector_norm(y.detach().double())) / y.numel() ** 0.5
        self._mark(y, _Tags(made=frozenset([path]), axis=frozenset([_axis_of(module)])))

    # -- functions ----------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and pass on what is known of its arguments."""
        output = func(*args, **(kwargs or {}))
        if self._stack and not self._inside and not under_vmap():
            given = [tensor for tensor in tensors((args, kwargs or {})) if id(tensor) in self._tags]
            if given:
                self._pass_on(getattr(func, "__name__", ""), args, kwargs or {}, given, output)
        return output

    def _pass_on(self, name: str, args: Any, kwargs: Any, given: list[Tensor], output: Any) -> None:
        known = [(tensor, self._of(tensor)) for tensor in given]
        others = [t for t in tensors((args, kwargs)) if not isinstance(t, nn.Parameter) and t.ndim]
        if name in _PRODUCTS and len(others) > 1:
            for _, tags in known:
                for act in tags.acts:
                    self.seen.activations[act].is_gate = True
        for made in [t for t in tensors(output) if t.is_floating_point()]:
            same = [tags for tensor, tags in known if tensor.shape == made.shape and name not in _MOVES]
            axis = frozenset(fact for tensor, tags in known for fact in tags.axis if _keeps(fact, tensor, made, name))
            adds = name in _SUMS and len(others) > 1
            for tensor, tags in known:
                ends = tensor.shape != made.shape or name in _MOVES
                for norm in tags.own if ends or adds else ():
                    self.seen.readers.setdefault(norm, set()).add("other" if ends else "sum")
            tags = _joined(same)
            everything = _joined(tags for _, tags in known)
            own = frozenset() if adds else tags.own
            tags = _Tags(everything.made, own, tags.through, axis, everything.acts)
            kind = function_kind(name, args, kwargs)
            if kind and made.ndim > 1:
                tags = self._activate(kind, made, tags)
            self._mark(made, tags)

    def _activate(self, kind: str, y: Tensor, tags: _Tags) -> _Tags:
        path, module = self._stack[-1]
        is_module = next(module.children(), None) is None and not any(True for _ in module.parameters(recurse=False))
        place = path if is_module else next(iter(sorted(tags.made)), path)
        key = place, self._calls[place]
        self._calls[place] += 1
        act = self.seen.activations.setdefault(key, Activation(place, kind, is_module, tags.made))
        y = y.detach()
        if kind == "relu":
            count(act, y, y.ndim - 1 if "last" in tags.axis and "second" not in tags.axis else 1, tags.axis)
        else:
            count_tails(act, y)
        return _Tags(tags.made, tags.own, tags.through, tags.axis, frozenset([key]))


def _keeps(fact: str, given: Tensor, made: Tensor, name: str) -> bool:
    """Whether the axis of features is where it was, as far as shapes and the function's name tell."""
    if given.ndim != made.ndim or given.ndim < 2 or name in _MOVES or name in _SHAPED:
        return False
    axis = -1 if fact == "last" else 1
    return given.shape[axis] == made.shape[axis]


def _joined(several: Iterable[_Tags]) -> _Tags:
    found = _NONE
    for tags in several:
        found = found | tags
    return found


def _is_unit(module: Module) -> bool:
    if isinstance(module, nn.MultiheadAttention) or _is_norm(module):
        return True
    return bears_weight(module) and not module._modules.keys() - {"parametrizations"}


def _is_norm(module: Module) -> bool:
    return is_known_norm(module) or normalizes(module)


def _axis_of(module: Module) -> str:
    if isinstance(module, _ON_LAST):
        return "last"
    return "second" if isinstance(module, _ConvNd) else "unknown"
