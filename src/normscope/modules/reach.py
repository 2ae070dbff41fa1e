"""What a function reaches beside its arguments: the objects that its code, and the code that it calls, can name.

A loss that reads a teacher, a memory bank or a counter names it somewhere: in a cell of its closure, among the globals
that its code loads, in a default, as an attribute of the object that it is bound to. From these places everything is
reached by attributes and items. Code is read only where it is a user's own: what torch and installed packages keep in
their globals is theirs, but objects of their classes are looked into like all others.
"""

import builtins
import dis
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, MethodWrapperType, ModuleType
from typing import Any, NamedTuple

MISSING = object()
"""Stands for a variable that has no value."""

_NOT_USERS = {"normscope", "torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
_INSTALLED = ("site-packages", "dist-packages", sysconfig.get_path("stdlib"))


class Reach:
    """Functions that a pass calls, and what is known about the things that they reach.

    Made once for a training and handed to every ``Snapshot`` of it.

    Args:
        functions: The functions by the names that messages give them; None where there is none.
        also: Further objects that a pass may change.

    Attributes:
        functions: As given, without what is None.
        also: As given.
        compared: Whether everything was compared after a pass was undone.
        only_read: Names of large tensors that the passes compared have not written.
        written: Names of what passes, or the step that they repeat, have written, until everything was compared.
        left: What was not as it was after a pass was undone.
        open: Whether a pass is under way that will be undone as a whole.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any] | None], also: Sequence[Any] = ()) -> None:
        self.set_functions(functions)
        self.also = tuple(also)
        self.compared = False
        self.only_read: set[str] = set()
        self.written: set[str] = set()
        self.left: list[str] = []
        self.open = False

    def set_functions(self, functions: Mapping[str, Callable[..., Any] | None]) -> None:
        """Take other functions in place of those given before."""
        self.functions = {name: function for name, function in functions.items() if function is not None}


def left_words(left: Sequence[str], most: int = 4) -> str:
    """Say what was left changed, and what to do."""
    more = f" and {len(left) - most} more" if len(left) > most else ""
    return f"{', '.join(left[:most])}{more}. Name what holds it in also=, or have the loss only read it"


class Binding:
    """A variable: a cell of a closure, an entry of a namespace, or an attribute without a dictionary.

    Args:
        name: How messages call it.
        holder: The cell, the namespace's dictionary, or the class or object that has the attribute.
        key: Its name in the holder.
    """

    __slots__ = ("_holder", "_key", "name", "value")

    def __init__(self, name: str, holder: Any, key: str) -> None:
        self.name, self._holder, self._key = name, holder, key
        self.value = self.now()

    def now(self) -> Any:
        """Return the present value, or ``MISSING``."""
        holder = self._holder
        try:
            if isinstance(holder, types.CellType):
                return holder.cell_contents
            if isinstance(holder, dict):
                return holder.get(self._key, MISSING)
            if isinstance(holder, type):
                return vars(holder).get(self._key, MISSING)
            return getattr(holder, self._key)
        except (ValueError, AttributeError):
            return MISSING

    def is_as_it_was(self) -> bool:
        """Whether the variable still names the same object."""
        return self.now() is self.value

    def restore(self) -> None:
        """Have the variable name the object that it named."""
        holder, key, gone = self._holder, self._key, self.value is MISSING
        if isinstance(holder, types.CellType):
            if gone:
                del holder.cell_contents
            else:
                holder.cell_contents = self.value
        elif isinstance(holder, dict):
            if gone:
                del holder[key]
            else:
                holder[key] = self.value
        elif isinstance(holder, type):
            type.__delattr__(holder, key) if gone else type.__setattr__(holder, key, self.value)
        else:
            object.__delattr__(holder, key) if gone else object.__setattr__(holder, key, self.value)


class Part(NamedTuple):
    """Something that a function, a class or an object holds and that has no variable of its own."""

    key: str
    value: Any


class CodeWalk:
    """One walk over code: which variables it names, and which methods of the classes that it meets it calls.

    A method is walked once code that was walked names it, so the walk ends when no name brings a new method.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._classes: dict[type, bool] = {}
        self._done: set[tuple[type, str]] = set()
        self._modules: set[tuple[int, str]] = set()

    def parts(self, value: Any) -> Iterator[Binding | Part]:
        """Yield what a function, a method, a partial function, a class or a reference leads to."""
        if isinstance(value, FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, (MethodType, BuiltinMethodType, MethodWrapperType)):
            owner = value.__self__
            if not isinstance(owner, (ModuleType, type(None))):
                yield Part(type(owner).__name__, owner)
            if isinstance(value, MethodType):
                yield Part("", value.__func__)
        elif isinstance(value, partial):
            yield Part("", value.func)
            given = {f"argument {index}": each for index, each in enumerate(value.args)} | value.keywords
            self.names.update(given)
            yield from (Part(key, each) for key, each in given.items())
        elif isinstance(value, weakref.ReferenceType):
            yield Part("", value())
        elif isinstance(value, type):
            self.note_class(value, called=True)
        elif hasattr(value, "__wrapped__"):  # a cache of functools, written in C
            yield Part("", value.__wrapped__)

    def note_class(self, cls: type, called: bool = False) -> None:
        """Take a class whose methods code may call; its constructor only if the class itself is named."""
        for kind in _users_classes(cls):
            self._classes[kind] = self._classes.get(kind, False) or called

    def pending(self) -> Iterator[Binding | Part]:
        """Yield what classes hold, and the methods that code names, until no name brings a new method."""
        fresh = True
        while fresh:
            fresh = False
            for cls, called in list(self._classes.items()):
                for key, held in list(vars(cls).items()):
                    function = _function_in(held)
                    wanted = not _is_described(key, held) if function is None else self._may_call(key, called)
                    if wanted and (cls, key) not in self._done:
                        self._done.add((cls, key))
                        fresh = True
                        name = f"{cls.__name__}.{key}"
                        yield Binding(name, cls, key) if function is None else Part(name, function)

    def _may_call(self, key: str, called: bool) -> bool:
        if key in ("__init__", "__new__", "__post_init__"):
            return called
        return key in self.names or key == "forward" or (key.startswith("__") and key.endswith("__"))

    def _of_function(self, function: FunctionType) -> Iterator[Binding | Part]:
        code, home = function.__code__, str(function.__module__ or "")
        if home.partition(".")[0] == "normscope":
            return
        for key, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            yield Binding(key, cell, key)
        positional = function.__defaults__ or ()
        taking = code.co_varnames[code.co_argcount - len(positional) : code.co_argcount]
        defaults = dict(zip(taking, positional, strict=True)) | (function.__kwdefaults__ or {})
        self.names.update(code.co_freevars, defaults)
        yield from (Part(key, given) for key, given in defaults.items())
        if not _is_users(home, code.co_filename):
            return
        globals_, attributes, imported = _named_by(code)
        self.names |= globals_ | attributes
        for key in globals_:
            found = function.__globals__.get(key, MISSING)
            if isinstance(found, ModuleType):
                yield from self._of_module(found, attributes)
            elif found is not MISSING or not hasattr(builtins, key):
                yield Binding(key, function.__globals__, key)
        for name in imported:
            if isinstance(found := sys.modules.get(name), ModuleType):
                yield from self._of_module(found, attributes | globals_)

    def _of_module(self, module: ModuleType, names: frozenset[str]) -> Iterator[Binding]:
        if not _is_users(module.__name__, getattr(module, "__file__", None) or ""):
            return
        for key in names & vars(module).keys():
            if (id(module), key) in self._modules:
                continue
            self._modules.add((id(module), key))
            held = vars(module)[key]
            if isinstance(held, ModuleType):
                yield from self._of_module(held, names)
            else:
                yield Binding(f"{module.__name__}.{key}", vars(module), key)


@lru_cache(maxsize=4096)
def _named_by(code: CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Return the globals, the attributes and the modules to import that a function and those within it name."""
    found: tuple[set[str], set[str], set[str]] = (set(), set(), set())
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME"):
            found[0].add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            found[2].add(instruction.argval)
    found[1].update(set(code.co_names) - found[2])
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            for mine, more in zip(found, _named_by(inner), strict=True):
                mine |= more
    return frozenset(found[0]), frozenset(found[1]), frozenset(found[2])


def _is_users(module: str, file: str) -> bool:
    """Whether a module is a user's own, and not the interpreter's, an installed package's or this package's."""
    return module.partition(".")[0] not in _NOT_USERS and not any(part in file for part in _INSTALLED)


@lru_cache(maxsize=4096)
def _users_classes(cls: type) -> tuple[type, ...]:
    return tuple(kind for kind in cls.__mro__ if _is_users(kind.__module__, _file_of(kind.__module__)))


def _file_of(module: str) -> str:
    return getattr(sys.modules.get(module), "__file__", None) or ""


def _function_in(held: Any) -> Any:
    """Return the function that a class's entry calls, or None."""
    if isinstance(held, FunctionType):
        return held
    if isinstance(held, (staticmethod, classmethod)):
        return held.__func__
    if isinstance(held, property):
        return held.fget
    return held.func if isinstance(held, cached_property) else None


def _is_described(key: str, held: Any) -> bool:
    """Whether a class's entry says what its objects are like, and holds nothing itself."""
    return key.startswith(("__", "_abc_")) or isinstance(held, (types.MemberDescriptorType, types.GetSetDescriptorType))
