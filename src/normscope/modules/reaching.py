"""Snapshots of what functions reach beside a model: put back after a pass, or before each pass of a step."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.module import register_module_forward_pre_hook

from normscope._errors import UsageError
from normscope.modules.beside import Kept, Mark, kept_beside
from normscope.modules.outside import is_outside, is_read_once, slots_of
from normscope.modules.reach import MISSING, Binding, CodeWalk, Reach
from normscope.modules.rng import RngState
from normscope.modules.state import _EMPTY, Snapshot, _call_all, _inside, _values_in
from normscope.modules.values import Values
from normscope.modules.wrapped import runs_compiled

# What is reached beside the model is mostly small, or read only: data, a frozen teacher. A copy has to be made before
# the write that it is to undo, and whether there will be one is not known before. So everything is copied at first, up
# to a budget and the smallest first. The first step then shows which of the large tensors are written; the others are
# only watched from then on, by their version counter: a network of a millisecond is not to pay for a copy of its data
# set at every reading. What is beyond the budget is watched from the beginning, in the first pass by its content too,
# as writing through ``.data`` moves no counter. A watched tensor that is written after all is named, not put back.
LARGE = 1 << 20  # bytes: a copy takes a tenth of a millisecond
BUDGET = 1 << 30  # bytes
_MOST = 20_000  # objects beside the model that are looked into; the others are marked


class ReachingSnapshot(Snapshot):
    """A snapshot that keeps also everything that functions can name.

    Variables (cells, globals, attributes of classes), modules, optimizers, tensors, containers, arrays, random streams,
    and the attributes of objects, to any depth, those in the model's attributes too. Left alone are data sets and
    loaders, threads, logs, and what runs a training: they are only marked, so that a change is named.

    Args:
        reach: The functions that will be called.
        *models: As of ``Snapshot``.
        optimizers: As of ``Snapshot``.
        generators: As of ``Snapshot``.
        streams: As of ``Snapshot``.

    Raises:
        UsageError: As of ``Snapshot``; or a function names an iterator, from which what is taken cannot be put back.
    """

    _empty = _EMPTY

    def __init__(
        self,
        reach: Reach,
        *models: Module,
        optimizers: Sequence[Any] = (),
        generators: Iterable[Generator] = (),
        streams: bool = True,
    ) -> None:
        self._reach, self._walk = reach, CodeWalk()
        self._beside: list[Kept] = []
        self._marks: list[Mark] = []
        self._read_once: list[tuple[str, Any]] = []
        self._held: list[Any] = []  # their identities are not given to other objects
        self._large: set[str] = set()
        super().__init__(*models, optimizers=optimizers, generators=generators, streams=False)
        own = len(self._tensors)
        self._keep_reached()
        self._keep_values(own)
        self._streams = RngState(generators=self._generators) if streams else None
        self._runs_compiled = any(runs_compiled(attributes) for *_, attributes in self._objects)

    def _keep_reached(self) -> None:
        reach = self._reach
        for name, function in reach.functions.items():
            self._keep("", name, function)
        for index, thing in enumerate(reach.also):
            self._keep("also", index, thing)
            if hasattr(thing, "__dict__"):  # named by the user: looked into, whatever it is
                self._known.discard(id(thing))
                self._keep_object(f"also.{index}", thing)
        self._keep_parts("", self._walk.pending())
        for name, iterator in self._read_once:
            if name.rpartition(".")[2] in self._walk.names:
                raise UsageError(
                    f"{' and '.join(reach.functions)} can take from {name}, an iterator "
                    f"({type(iterator).__name__}), and what is taken cannot be put back: take it outside, and hand it "
                    "over in the batch"
                )

    def _keep_values(self, begin: int) -> None:
        """Copy the tensors found since ``begin``, or mark those that are not to be copied."""
        kept: list[tuple[str, Tensor]] = []
        room = BUDGET
        for name, tensor in sorted(_values_in(self._tensors[begin:]), key=lambda pair: _bytes(pair[1])):
            size, room = _bytes(tensor), room - _bytes(tensor)
            if size > LARGE:
                self._large.add(name)
            if room < 0 or (size > LARGE and self._is_only_read(name)):
                self._marks.append(Mark(name, tensor, thorough=not self._reach.compared))
            else:
                kept.append((name, tensor))
        self._values.append(Values(kept))

    def _keep_object(self, name: str, owner: Any) -> None:
        self._walk.note_class(type(owner))
        super()._keep_object(name, owner)

    def _keep_all(self, name: str, key: Any, container: Any) -> None:
        if len(self._known) < _MOST:
            super()._keep_all(name, key, container)
        if type(container).__module__ not in ("builtins", "collections"):
            self._keep_plain_object(_inside(name, key), container)

    def _keep_other(self, name: str, key: Any, value: Any) -> None:
        if id(value) in self._known:
            return
        self._known.add(id(value))
        self._held.append(value)
        name = _inside(name, key)
        if isinstance(value, FunctionType):
            self._objects.append((name, value, FunctionType, dict(vars(value))))
            for inner, held in vars(value).items():
                self._keep(name, inner, held)
            self._keep_parts("", self._walk.parts(value))
        elif isinstance(value, frozenset):
            self._keep_all(name, "", tuple(value))
        elif isinstance(value, type):
            self._keep_parts("", self._walk.parts(value))
        elif isinstance(value, np.ndarray) and (value.nbytes > BUDGET or self._is_only_read(name)):
            self._marks.append(Mark(name, value, thorough=not self._reach.compared))
        elif (kept := kept_beside(name, value)) is not None:
            self._beside.append(kept)
            if isinstance(value, np.ndarray) and value.nbytes > LARGE:
                self._large.add(name)
        elif is_read_once(value):
            self._marks.append(Mark(name, value))
            self._read_once.append((name, value))
        else:
            self._keep_parts(name, self._walk.parts(value))
            if is_outside(value) or len(self._known) > _MOST:
                self._marks.append(Mark(name, value))
            else:
                self._keep_plain_object(name, value)

    def _keep_plain_object(self, name: str, value: Any) -> None:
        self._walk.note_class(type(value))
        if isinstance(getattr(value, "__dict__", None), dict):
            self._known.discard(id(value))
            self._keep_object(name, value)
        slots = slots_of(type(value))  # type: ignore[arg-type]
        self._keep_parts(name, (Binding(f"{name}.{key}", value, key) for key in slots))

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
            self._keep_parts("", self._walk.pending())
            self._keep_values(begin)

    def differences(self) -> list[str]:
        """Name everything that is not as it was, what is only marked too."""
        return super().differences() + [kept.name for kept in self._beside if not kept.is_as_it_was()] + self._moved()

    def _moved(self) -> list[str]:
        return [mark.name for mark in self._marks if mark.moved()]

    def _restore_attached(self) -> None:
        super()._restore_attached()
        _call_all(kept.restore for kept in self._beside if not kept.is_as_it_was())

    def restore(self) -> None:
        """Put everything back, and note which of the large tensors had been written."""
        self._reach.written |= self._written_now()
        super().restore()

    def _is_only_read(self, name: str) -> bool:
        return name in self._reach.only_read

    def _written_now(self) -> set[str]:
        if self._reach.compared or not self._large:
            return set()
        names = {name for values in self._values for name, *_ in values.changed()}
        return names | {kept.name for kept in self._beside if not kept.is_as_it_was()}

    def note_left(self, *, learn: bool) -> None:
        """Note at the reach what is not as it was after ``restore``.

        Everything is compared once, the costly way; from then on only what is watched.

        Args:
            learn: Whether later steps write what this step has written, and no more.
        """
        reach = self._reach
        reach.left += self._moved() if reach.compared else self.differences()
        if learn and not reach.compared:
            reach.only_read = self._large - reach.written
        reach.compared = True


@contextmanager
def undone(
    reach: Reach, *models: Module, optimizers: Sequence[Any] = (), generators: Iterable[Generator] = ()
) -> Iterator[None]:
    """Put back what is given, what functions reach, and every module that runs, after the block, however it ends.

    ``reach.left`` names what could not be put back.
    """
    snapshot = ReachingSnapshot(reach, *models, optimizers=optimizers, generators=generators)
    try:
        with snapshot.noting():
            yield
    finally:
        snapshot.restore()
        snapshot.note_left(learn=False)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
