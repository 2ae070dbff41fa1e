"""Everything that models, optimizers and random streams are at a moment, and how it is put back bit for bit."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import is_
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.modules.beside import Kept, Mark, kept_beside
from normscope.modules.reach import MISSING, Binding, CodeWalk, Reach, is_outside, is_read_once, slots_of
from normscope.modules.rng import RngState
from normscope.modules.values import Values, put_back
from normscope.modules.wrapped import runs_compiled

# Types without contents. Most attributes are of one of these, and isinstance asks a metaclass, in Python.
_EMPTY = {bool, int, float, complex, str, bytes, range, slice, type(None), torch.dtype, torch.device, torch.Size}
_PLAIN = {*_EMPTY, type, FunctionType, MethodType}

# What is reached beside the model is mostly small, or read only: data, a frozen teacher. A copy has to be made before
# the write that it is to undo, and whether there will be one is not known before. So everything is copied at first, up
# to a budget and the smallest first. The first pass then shows which of the large tensors it writes; the others are
# only watched from then on, by their version counter: a network of a millisecond is not to pay for a copy of its data
# set at every reading. What is beyond the budget is watched from the beginning, in the first pass by its content too,
# as writing through ``.data`` moves no counter. A watched tensor that is written after all is named, not put back.
_LARGE = 1 << 24  # bytes
_BUDGET = 1 << 30  # bytes
_MOST = 20_000  # objects beside the model that are looked into; the others are marked


class Snapshot:
    """What models, optimizers and random streams are now, and the way back to it.

    Kept of every module, also of one that is held by a plain attribute or in a list, and of every optimizer: its class,
    its attributes (modes among them), and the contents of those that are lists, dicts, sets or deques, to any depth:
    children, hooks, parameter groups, optimizer state. The containers stay the same objects, so that handles of hooks
    still work. Kept of every tensor in any of these: its value, its memory, ``requires_grad``, its gradient (value,
    identity, and whether there is any) and its hooks. Kept of random streams: torch's, NumPy's, Python's, and every
    ``torch.Generator`` in an attribute. Not kept, unless a reach is given: what is reached only through another
    object's inside.

    With a reach also everything that the given functions can name is kept: variables (cells, globals, attributes of
    classes), modules, optimizers, tensors, containers, arrays, random streams, and the attributes of objects, to any
    depth. Left alone are data sets and loaders, threads, logs, and what runs a training: their objects are only marked,
    so that a change is named.

    Memory: one copy of parameters, buffers, gradients and optimizer state, and of what a reach adds.

    Args:
        *models: The models.
        optimizers: Their optimizers; anything with ``param_groups`` and ``state``.
        generators: Further random streams, such as those of loaders.
        streams: Whether the random streams are put back too.
        reach: The functions that will be called, for what they reach.

    Raises:
        UsageError: A parameter or buffer is lazy, and so has no shape; a function names an iterator, from which what
            is taken cannot be put back.
    """

    def __init__(
        self,
        *models: Module,
        optimizers: Sequence[Any] = (),
        generators: Iterable[Generator] = (),
        streams: bool = True,
        reach: Reach | None = None,
    ) -> None:
        self._known: set[int] = set()
        self._reach = reach
        self._walk = CodeWalk()
        self._empty = _PLAIN if reach is None else _EMPTY
        self._beside: list[Kept] = []
        self._marks: list[Mark] = []
        self._read_once: list[tuple[str, Any]] = []
        self._held: list[Any] = []  # their identities are not given to other objects
        self._objects: list[tuple[str, Any, type | None, dict[str, Any]]] = []
        self._contents: list[tuple[str, Any, Any, tuple[Any, ...]]] = []
        self._tensors: list[_Attached] = []
        self._generators = list(generators)
        for model in models:
            self._keep_object("", model)
        for optimizer in optimizers:
            self._keep_object("optimizer", optimizer)
            for key in ("param_groups", "state"):  # a wrapper may hand out what another optimizer holds
                self._keep("optimizer", key, getattr(optimizer, key, None))
        self._values = [Values(_values_in(self._tensors))]
        self._large: set[str] = set()
        self._runs_compiled = False
        self._written: set[str] = set()
        if reach is not None:
            self._keep_reached(reach)
        self._streams = RngState(generators=self._generators) if streams else None

    def _keep_object(self, name: str, owner: Any) -> None:
        if id(owner) in self._known:
            return
        self._known.add(id(owner))
        attributes = dict(vars(owner))
        self._objects.append((name, owner, type(owner), attributes))
        if self._reach is not None:
            self._walk.note_class(type(owner))
        for key, value in attributes.items():
            if type(value) in (dict, OrderedDict) and not value:  # most of a module's hooks
                self._contents.append((name, key, value, ()))
            elif type(value) not in self._empty:
                self._keep(name, key, value)
        if not isinstance(attributes.get("_parameters"), dict) and isinstance(owner, Module):  # scripted, kept in C++
            for kind in ("_parameters", "_buffers", "_modules"):
                for key, value in getattr(owner, kind).items():
                    self._keep(name, key, value)

    def _keep(self, name: str, key: Any, value: Any) -> None:
        """Keep one value that an attribute or a container holds under a key, and what is in it."""
        if isinstance(value, (dict, list, set, deque)):
            if id(value) not in self._known:
                self._known.add(id(value))
                self._contents.append((name, key, value, _items(value)))
                self._keep_all(name, key, value)
                if self._reach is not None and type(value).__module__ not in ("builtins", "collections"):
                    self._held.append(value)
                    self._keep_plain_object(_inside(name, key), value)
        elif isinstance(value, tuple):
            self._keep_all(name, key, value)
        elif isinstance(value, Tensor):
            if id(value) not in self._known:
                self._known.add(id(value))
                if type(value) not in (Tensor, Parameter) and is_lazy(value):
                    raise UsageError(f"{_inside(name, key)} has no shape yet: run a batch through the lazy model first")
                kept = _Attached(_inside(name, key), value)
                self._tensors.append(kept)
                for hooks in (kept.hooks, kept.after_hooks):
                    if hooks is not None:
                        self._keep(kept.name, "hooks", hooks)
        elif isinstance(value, (Module, Optimizer)):
            self._keep_object(_inside(name, key), value)
        elif isinstance(value, Generator):
            self._generators.append(value)
        elif self._reach is not None and id(value) not in self._known:
            self._known.add(id(value))
            self._held.append(value)
            self._keep_other(_inside(name, key), key, value)

    def _keep_all(self, name: str, key: Any, container: Any) -> None:
        if self._reach is not None and len(self._known) > _MOST:
            return
        for inner, value in container.items() if isinstance(container, dict) else enumerate(container):
            if type(value) not in self._empty:
                self._keep(_inside(name, key), inner, value)

    # -- what functions reach -----------------------------------------------------------------------------------------

    def _keep_reached(self, reach: Reach) -> None:
        own = len(self._tensors)
        for name, function in reach.functions.items():
            self._keep("", name, function)
        for index, thing in enumerate(reach.also):
            self._keep("also", index, thing)
            if hasattr(thing, "__dict__"):  # named by the user: looked into, whatever it is
                self._keep_object(f"also.{index}", thing)
        self._finish(own)
        self._runs_compiled = any(runs_compiled(attributes) for *_, attributes in self._objects)
        for name, iterator in self._read_once:
            if name.rpartition(".")[2] in self._walk.names:
                raise UsageError(
                    f"{' and '.join(reach.functions)} can take from {name}, an iterator "
                    f"({type(iterator).__name__}), and what is taken cannot be put back: take it outside, and hand it "
                    "over in the batch"
                )

    def _finish(self, begin: int) -> None:
        """Walk the methods that were named, then keep the values of all tensors found since ``begin``."""
        self._keep_parts("", self._walk.pending())
        kept: list[tuple[str, Tensor]] = []
        assert self._reach is not None
        room = _BUDGET
        for name, tensor in sorted(_values_in(self._tensors[begin:]), key=lambda pair: _bytes(pair[1])):
            size, room = _bytes(tensor), room - _bytes(tensor)
            if size > _LARGE:
                self._large.add(name)
            if room < 0 or (size > _LARGE and name in self._reach.only_read):
                self._marks.append(Mark(name, tensor, thorough=not self._reach.compared))
            else:
                kept.append((name, tensor))
        self._values.append(Values(kept))

    def _keep_other(self, name: str, key: Any, value: Any) -> None:
        """Keep what is no tensor, module, optimizer or container of Python's own."""
        assert self._reach is not None
        if isinstance(value, (FunctionType, type)):
            if isinstance(value, FunctionType):
                self._objects.append((name, value, None, dict(vars(value))))
                for inner, held in vars(value).items():
                    self._keep(name, inner, held)
            self._keep_parts("", self._walk.parts(value))
        elif isinstance(value, np.ndarray) and (value.nbytes > _BUDGET or name in self._reach.only_read):
            self._marks.append(Mark(name, value, thorough=not self._reach.compared))
        elif (kept := kept_beside(name, value)) is not None:
            self._beside.append(kept)
            if isinstance(value, np.ndarray) and value.nbytes > _LARGE:
                self._large.add(name)
        elif is_read_once(value):
            self._marks.append(Mark(name, value))
            self._read_once.append((name, value))
        elif is_outside(value) or len(self._known) > _MOST:
            self._marks.append(Mark(name, value))
            self._keep_parts(name, self._walk.parts(value))
        else:
            self._keep_parts(name, self._walk.parts(value))
            self._keep_plain_object(name, value)

    def _keep_plain_object(self, name: str, value: Any) -> None:
        if isinstance(value, frozenset):
            self._keep_all(name, "", value)
        self._walk.note_class(type(value))
        if isinstance(getattr(value, "__dict__", None), dict):
            self._known.discard(id(value))
            self._keep_object(name, value)
        self._keep_parts(name, (Binding(f"{name}.{key}", value, key) for key in slots_of(type(value))))

    def _keep_parts(self, name: str, parts: Iterable[Any]) -> None:
        for part in parts:
            if isinstance(part, Binding):
                self._beside.append(part)
                if part.value is not MISSING and type(part.value) not in self._empty:
                    self._keep("", part.name, part.value)
            elif type(part.value) not in self._empty:
                self._keep(name, part.key, part.value)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Keep every module that runs in the block and is not kept yet, right before its forward pass."""
        if self._runs_compiled:  # torch warns of such a hook, and might compile anew
            yield
            return
        hook = register_module_forward_pre_hook(self._note)
        try:
            yield
        finally:
            hook.remove()

    def _note(self, module: Module, _: Any) -> None:
        if id(module) in self._known:
            return
        if any(p is not None and not isinstance(p, Parameter) for p in module._parameters.values()):
            return  # lent other parameters for this call (functional_call): what it holds is not its own
        begin = len(self._tensors)
        with torch.no_grad(), torch.inference_mode(False):
            self._keep_object(type(module).__name__, module)
            self._finish(begin)

    def note_left(self, *, learn: bool) -> None:
        """Note at the reach what is not as it was after ``restore``.

        Everything is compared once, the costly way; from then on only what is watched.

        Args:
            learn: Whether later passes write what this pass has written, and no more.
        """
        reach = self._reach
        assert reach is not None
        reach.left += self._moved() if reach.compared else self.differences()
        if learn and not reach.compared:
            reach.only_read = self._large - self._written
        reach.compared = True

    def _moved(self) -> list[str]:
        return [mark.name for mark in self._marks if mark.moved()]

    # -- comparing and putting back -----------------------------------------------------------------------------------

    def differences(self) -> list[str]:
        """Name everything that is not as it was, one phrase each; an empty list means: no trace."""
        found: list[str] = []
        if self._streams is not None:
            found += self._streams.differences(RngState(generators=self._generators))
        for name, owner, kind, attributes in self._objects:
            now = vars(owner)
            if kind is not None and type(owner) is not kind:
                found.append(f"class of {name}")
            changed = [key for key in attributes if key not in now or now[key] is not attributes[key]]
            found += [f"attribute {name}.{key}" for key in [*changed, *(now.keys() - attributes.keys())]]
        found += [
            f"contents of {name}.{key}" for name, key, *pair in self._contents if any(pair) and not _same_items(*pair)
        ]
        for tensor in self._tensors:
            if not tensor.is_as_it_was():
                found += tensor.differences()
        found += [name for values in self._values for name, *_ in values.changed()]
        return found + [kept.name for kept in self._beside if not kept.is_as_it_was()] + self._moved()

    def restore(self) -> None:
        """Put everything back, each part even if another cannot be.

        Safe to call in the middle of a failed evaluation. Only what differs is written.

        Raises:
            BaseException: What the first part that cannot be put back has raised, after all others were put back.
        """
        acts = [
            *(self._restore_objects, self._restore_contents, self._restore_values, self._restore_attached),
            self._restore_beside,
        ]
        _call_all(acts if self._streams is None else [*acts, self._streams.restore])

    def _restore_objects(self) -> None:
        _call_all(
            partial(_restore_object, owner, kind, attributes)
            for _, owner, kind, attributes in self._objects
            if (kind is not None and type(owner) is not kind) or _other_attributes(vars(owner), attributes)
        )

    def _restore_contents(self) -> None:
        _call_all(
            partial(_refill, container, items)
            for _, _, container, items in self._contents
            if not _same_items(container, items)
        )

    def _restore_values(self) -> None:
        changed = [each for values in self._values for each in values.changed()]
        self._written |= {name for name, *_ in changed}
        _call_all(partial(put_back, tensor, memory, value) for _, tensor, memory, value in changed)

    def _restore_attached(self) -> None:
        _call_all(tensor.restore for tensor in self._tensors if not tensor.is_as_it_was())

    def _restore_beside(self) -> None:
        changed = [kept for kept in self._beside if not kept.is_as_it_was()]
        self._written |= {kept.name for kept in changed}
        _call_all(kept.restore for kept in changed)


class _Attached:
    """What hangs on a tensor beside its value."""

    __slots__ = ("after_hooks", "grad", "hooks", "is_leaf", "name", "requires_grad", "tensor")

    def __init__(self, name: str, tensor: Any) -> None:
        self.name, self.tensor = name, tensor
        self.is_leaf, self.requires_grad = tensor.is_leaf, tensor.requires_grad
        self.grad = tensor.grad if self.is_leaf else None
        self.hooks, self.after_hooks = tensor._backward_hooks, tensor._post_accumulate_grad_hooks

    def is_as_it_was(self) -> bool:
        tensor = self.tensor
        return (
            tensor.requires_grad is self.requires_grad
            and tensor.is_leaf is self.is_leaf
            and (not self.is_leaf or tensor.grad is self.grad)
            and (tensor._backward_hooks is self.hooks and tensor._post_accumulate_grad_hooks is self.after_hooks)
        )

    def differences(self) -> Iterator[str]:
        tensor = self.tensor
        if tensor.requires_grad is not self.requires_grad or tensor.is_leaf is not self.is_leaf:
            yield f"requires_grad of {self.name}"
        if tensor.is_leaf and tensor.grad is not self.grad:
            yield f"identity of the gradient of {self.name}"
        # Where a first hook was set and removed again, an empty dictionary stays, which is no trace.
        if _other(tensor._backward_hooks, self.hooks) or _other(tensor._post_accumulate_grad_hooks, self.after_hooks):
            yield f"hooks of {self.name}"

    def restore(self) -> None:
        tensor = self.tensor
        if self.is_leaf and not tensor.is_leaf:
            tensor.detach_()  # it was updated in place with a graph
        if tensor.requires_grad is not self.requires_grad:
            tensor.requires_grad_(self.requires_grad)
        if tensor.is_leaf and tensor.grad is not self.grad:
            tensor.grad = self.grad
        if _other(tensor._backward_hooks, self.hooks):
            tensor._backward_hooks = self.hooks
        if _other(tensor._post_accumulate_grad_hooks, self.after_hooks):
            tensor._post_accumulate_grad_hooks = self.after_hooks


def _other(now: Any, kept: Any) -> bool:
    return now is not kept and bool(now or kept)


def _inside(name: str, key: Any) -> str:
    """Name what an attribute, a container or a tensor holds; the dictionaries of a module's own need no name."""
    if key in ("_parameters", "_buffers", "_modules"):
        return name
    return f"{name}.{key if isinstance(key, (str, int)) else type(key).__name__}".lstrip(".")


def _other_attributes(now: dict[str, Any], kept: dict[str, Any]) -> bool:
    return now.keys() != kept.keys() or any(now[key] is not value for key, value in kept.items())


def _values_in(tensors: Iterable[_Attached]) -> list[tuple[str, Tensor]]:
    """Return the tensors and their gradients, by the names of what is to be compared."""
    kept = list(tensors)
    return [(f"value of {each.name}", each.tensor) for each in kept] + [
        (f"gradient of {each.name}", each.grad) for each in kept if each.grad is not None
    ]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _restore_object(owner: Any, kind: type | None, attributes: dict[str, Any]) -> None:
    if kind is not None and type(owner) is not kind:
        owner.__class__ = kind
    now = vars(owner)
    if _other_attributes(now, attributes):
        now.clear()
        now.update(attributes)


def _items(container: Any) -> tuple[Any, ...]:
    return tuple(container.items() if isinstance(container, dict) else container)


def _same_items(container: Any, kept: tuple[Any, ...]) -> bool:
    """Whether a container holds the objects that it held; by identity, as tensors do not compare to a truth value."""
    if len(container) != len(kept) or not kept:
        return not container and not kept
    if isinstance(container, dict):
        return all(p is key and q is value for (p, q), (key, value) in zip(container.items(), kept, strict=True))
    if isinstance(container, set):
        return set(map(id, container)) == set(map(id, kept))
    return all(map(is_, container, kept))


def _refill(container: Any, items: tuple[Any, ...]) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(items)
    else:
        container.extend(items)


def _call_all(acts: Iterable[Callable[[], object]]) -> None:
    """Call every function, also after one of them has raised; then raise the first error."""
    error: BaseException | None = None
    for act in acts:
        try:
            act()
        except BaseException as raised:
            error = error or raised
    if error is not None:
        raise error


@contextmanager
def transaction(model: Module) -> Iterator[None]:
    """Put the model and the random streams back as they were if the block raises, whatever it raises."""
    snapshot = Snapshot(model)
    try:
        yield
    except BaseException:
        snapshot.restore()
        raise


@contextmanager
def traceless(
    *models: Module,
    optimizers: Sequence[Any] = (),
    generators: Iterable[Generator] = (),
    streams: bool = True,
    reach: Reach | None = None,
) -> Iterator[None]:
    """Put models, optimizers and random streams back after the block, however it ends; see ``Snapshot``.

    With a reach, every module that runs in the block is put back too, and ``reach.left`` names what could not be.
    """
    snapshot = Snapshot(*models, optimizers=optimizers, generators=generators, streams=streams, reach=reach)
    try:
        with snapshot.noting() if reach is not None else nullcontext():
            yield
    finally:
        snapshot.restore()
        if reach is not None:
            snapshot.note_left(learn=False)
