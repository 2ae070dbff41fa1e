"""Everything that models, optimizers and random streams are at a moment, and how it is put back bit for bit."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import is_
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Module, Parameter
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.modules.attached import Attached
from normscope.modules.rng import RngState
from normscope.modules.values import Values, put_back

# Types without contents. Most attributes are of one of these, and isinstance asks a metaclass, in Python.
_EMPTY = {bool, int, float, complex, str, bytes, range, slice, type(None), torch.dtype, torch.device, torch.Size}


class Snapshot:
    """What models, optimizers and random streams are now, and the way back to it.

    Kept of every module, also of one that is held by a plain attribute or in a list, and of every optimizer: its class,
    its attributes (modes among them), and the contents of those that are lists, dicts, sets or deques, to any depth:
    children, hooks, parameter groups, optimizer state. The containers stay the same objects, so that handles of hooks
    still work. Kept of every tensor in any of these: its value, its memory, ``requires_grad``, its gradient (value,
    identity, and whether there is any) and its hooks. Kept of random streams: torch's, NumPy's, Python's, and every
    ``torch.Generator`` in an attribute. Not kept: what is reached only through another object's inside
    (``ReachingSnapshot`` keeps it).

    Memory: one copy of parameters, buffers, gradients and optimizer state.

    Args:
        *models: The models.
        optimizers: Their optimizers; anything with ``param_groups`` and ``state``.
        generators: Further random streams, such as those of loaders.
        streams: Whether the random streams are put back too.

    Raises:
        UsageError: A parameter or buffer is lazy, and so has no shape.
    """

    _empty = _EMPTY | {type, FunctionType, MethodType}
    """Types whose objects are not looked into."""

    def __init__(
        self,
        *models: Module,
        optimizers: Sequence[Any] = (),
        generators: Iterable[Generator] = (),
        streams: bool = True,
    ) -> None:
        self._known: set[int] = set()
        self._objects: list[tuple[str, Any, type, dict[str, Any]]] = []
        self._contents: list[tuple[str, Any, Any, tuple[Any, ...]]] = []
        self._tensors: list[Attached] = []
        self._generators = list(generators)
        for model in models:
            self._keep_object("", model)
        for optimizer in optimizers:
            self._keep_object("optimizer", optimizer)
            for key in ("param_groups", "state"):  # a wrapper may hand out what another optimizer holds
                self._keep("optimizer", key, getattr(optimizer, key, None))
        self._values = [Values(_values_in(self._tensors))]
        self._streams = RngState(generators=self._generators) if streams else None

    def kept(self) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
        """Return the objects (modules and optimizers among them) and the containers that are kept, with their names."""
        objects = [(name, owner) for name, owner, *_ in self._objects]
        return objects, [(_inside(name, key), container) for name, key, container, _ in self._contents]

    def _keep_object(self, name: str, owner: Any) -> None:
        if id(owner) in self._known:
            return
        self._known.add(id(owner))
        attributes = dict(vars(owner))
        self._objects.append((name, owner, type(owner), attributes))
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
        elif isinstance(value, tuple):
            self._keep_all(name, key, value)
        elif isinstance(value, Tensor):
            if id(value) not in self._known:
                self._known.add(id(value))
                if type(value) not in (Tensor, Parameter) and is_lazy(value):
                    raise UsageError(f"{_inside(name, key)} has no shape yet: run a batch through the lazy model first")
                kept = Attached(_inside(name, key), value)
                self._tensors.append(kept)
                for hooks in (kept.hooks, kept.after_hooks):
                    if hooks is not None:
                        self._keep(kept.name, "hooks", hooks)
        elif isinstance(value, (Module, Optimizer)):
            self._keep_object(_inside(name, key), value)
        elif isinstance(value, Generator):
            self._generators.append(value)
        else:
            self._keep_other(name, key, value)

    def _keep_other(self, name: str, key: Any, value: Any) -> None:
        """Keep what is no tensor, module, optimizer, container of Python's own or random stream of torch's."""

    def _keep_all(self, name: str, key: Any, container: Any) -> None:
        for inner, value in container.items() if isinstance(container, dict) else enumerate(container):
            if type(value) not in self._empty:
                self._keep(_inside(name, key), inner, value)

    def differences(self) -> list[str]:
        """Name everything that is not as it was, one phrase each; an empty list means: no trace."""
        found: list[str] = []
        if self._streams is not None:
            found += self._streams.differences(RngState(generators=self._generators))
        for name, owner, kind, attributes in self._objects:
            now = vars(owner)
            if type(owner) is not kind:
                found.append(f"class of {name}")
            changed = [key for key in attributes if key not in now or now[key] is not attributes[key]]
            found += [f"attribute {name}.{key}" for key in [*changed, *(now.keys() - attributes.keys())]]
        found += [
            f"contents of {name}.{key}" for name, key, *pair in self._contents if any(pair) and not _same_items(*pair)
        ]
        for tensor in self._tensors:
            if not tensor.is_as_it_was():
                found += tensor.differences()
        return found + [name for values in self._values for name, *_ in values.changed()]

    def restore(self) -> None:
        """Put everything back, each part even if another cannot be.

        Safe to call in the middle of a failed evaluation. Only what differs is written.

        Raises:
            BaseException: What the first part that cannot be put back has raised, after all others were put back.
        """
        acts = [self._restore_objects, self._restore_contents, self._restore_values, self._restore_attached]
        _call_all(acts if self._streams is None else [*acts, self._streams.restore])

    def _restore_objects(self) -> None:
        _call_all(
            partial(_restore_object, owner, kind, attributes)
            for _, owner, kind, attributes in self._objects
            if type(owner) is not kind or _other_attributes(vars(owner), attributes)
        )

    def _restore_contents(self) -> None:
        _call_all(
            partial(_refill, container, items)
            for _, _, container, items in self._contents
            if not _same_items(container, items)
        )

    def _restore_values(self) -> None:
        changed = [each for values in self._values for each in values.changed()]
        _call_all(partial(put_back, tensor, memory, value) for _, tensor, memory, value in changed)

    def _restore_attached(self) -> None:
        _call_all(tensor.restore for tensor in self._tensors if not tensor.is_as_it_was())


def _inside(name: str, key: Any) -> str:
    """Name what an attribute, a container or a tensor holds; the dictionaries of a module's own need no name."""
    if key in ("_parameters", "_buffers", "_modules"):
        return name
    return f"{name}.{key if isinstance(key, (str, int)) else type(key).__name__}".lstrip(".")


def _other_attributes(now: dict[str, Any], kept: dict[str, Any]) -> bool:
    return now.keys() != kept.keys() or any(now[key] is not value for key, value in kept.items())


def _values_in(tensors: Iterable[Attached]) -> list[tuple[str, Tensor]]:
    """Return the tensors and their gradients, by the names of what is to be compared."""
    kept = list(tensors)
    return [(f"value of {each.name}", each.tensor) for each in kept] + [
        (f"gradient of {each.name}", each.grad) for each in kept if each.grad is not None
    ]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _restore_object(owner: Any, kind: type, attributes: dict[str, Any]) -> None:
    if type(owner) is not kind:
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
    *models: Module, optimizers: Sequence[Any] = (), generators: Iterable[Generator] = (), streams: bool = True
) -> Iterator[None]:
    """Put models, optimizers and random streams back after the block, however it ends; see ``Snapshot``."""
    snapshot = Snapshot(*models, optimizers=optimizers, generators=generators, streams=streams)
    try:
        yield
    finally:
        snapshot.restore()
