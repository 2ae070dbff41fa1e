"""Find what is to be checked: ``FILE_OR_MODULE:FACTORY``."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.nn import Module

from normscope._errors import UsageError
from normscope._unit import near
from normscope.evidence import Case
from normscope.records.reading import reached
from normscope.usercode import imports_from, load_file, load_module, no_words, users_code

_WANTED = (
    "an ns.Case, a tuple (model, loss_fn, loader, optimizer, eval_loader) of which the last two may be left out, a "
    "dict of Case's arguments, or a torch module"
)


@dataclass(frozen=True, slots=True)
class Target:
    """What a factory gave.

    Attributes:
        made: A set-up, or a model without one.
        file: Where the factory is written; empty if that is not known.
        line: Its line there; 0 if that is not known.
    """

    made: Case | Module
    file: str
    line: int


def open_target(words: str) -> Target:
    """Import a file or module, call the factory in it, and return what it gives.

    Args:
        words: ``train.py:make_case`` or ``package.module:make_case``.

    Raises:
        UsageError: There is no such file, module or factory; it raises, or gives something else.
    """
    with _found(words) as (found, name, module):
        file, line = _place(found, module)
        if not isinstance(found, Case | Module | tuple | Mapping):
            if not callable(found):
                raise UsageError(f"{words} is of type {type(found).__name__}: it must be a function")
            _takes_nothing(found, name)
            with users_code(f"{name}()"):
                found = found()
        with users_code(f"{name}()"):
            return Target(_case_of(found, name), file, line)


def open_factory(words: str) -> Callable[..., Any]:
    """Import a file or module and return the function in it that is named.

    Args:
        words: ``train.py:make_case`` or ``package.module:make_case``.

    Raises:
        UsageError: There is no such file or module, or the name is not that of a function.
    """
    with _found(words) as (found, name, _):
        if isinstance(found, Case | Module | tuple | Mapping) or not callable(found):
            kind = type(found).__name__
            raise UsageError(f"{words}: {name} is of type {kind}: it must be a function that makes the set-up anew")
        return found


def case_made_by(factory: Callable[..., Any], name: str, seed: int) -> Case:
    """Call a factory and return the set-up that it gives.

    Args:
        factory: Called with ``seed`` if it takes an argument of that name or wants one argument, else with none.
        name: What it is called in messages.
        seed: The seed.

    Raises:
        UsageError: It wants other arguments, raises, or gives no set-up.
    """
    arguments = _seed_argument(factory, name, seed)
    with users_code(f"{name}({'' if not arguments else 'seed'})"), no_words():
        made = _case_of(factory(**arguments), name)
    if isinstance(made, Module):
        raise UsageError(
            f"{name}() returned a model: to train it, return ns.Case(model, loss_fn, loader, optimizer) or such a tuple"
        )
    return made


def _seed_argument(factory: Callable[..., Any], name: str, seed: int) -> dict[str, int]:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in free and p.name != "seed"]
    if needed:
        raise UsageError(f"{name} wants {', '.join(needed)}: a factory takes no argument, or one that is called seed")
    return {"seed": seed} if "seed" in parameters else {}


@contextmanager
def _found(words: str) -> Iterator[tuple[Any, str, ModuleType]]:
    """Yield what the words name, its name and its module, while imports find the modules beside it."""
    source, colon, name = words.rpartition(":")
    if not colon or not source or not name:
        raise UsageError(f"{words!r} names no factory: give FILE_OR_MODULE:FACTORY, such as train.py:make_case")
    file = _file_of(source)
    with imports_from(Path.cwd() if file is None else file.resolve().parent):  # a factory may import when called
        module = load_module(source) if file is None else load_file(file)
        found: Any = module
        for part in name.split("."):
            with users_code(f"looking up {part} in {source}"):
                there = hasattr(found, part)
            if not there:
                known = [key for key, value in getattr(found, "__dict__", {}).items() if _may_be_meant(value, module)]
                hint = f": did you mean {near(part, known)}?" if known else ""
                raise UsageError(f"{source} has no attribute {part!r}{hint}")
            found = getattr(found, part)
        yield found, name, module


def _may_be_meant(value: Any, module: ModuleType) -> bool:
    """Return whether something in a file may be the factory that a mistyped name means."""
    own = callable(value) and getattr(value, "__module__", "") == module.__name__
    return own or isinstance(value, Case | Module | ModuleType)


def _file_of(source: str) -> Path | None:
    """Return the file that a target names; None if it names a module."""
    path = reached(source)
    if path.is_dir():
        raise UsageError(f"{source} is a folder: give a Python file in it, or the name of a module")
    if path.is_file():
        return path
    if path.exists():
        raise UsageError(f"cannot read {source}: it is a pipe or a device, no file")
    if path.suffix == ".py" or len(path.parts) > 1:
        raise UsageError(f"there is no file {source}")
    return None


def _takes_nothing(factory: Any, name: str) -> None:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in free]
    if needed:
        raise UsageError(f"{name} wants {', '.join(needed)}: a factory is called without arguments")


def _case_of(made: Any, name: str) -> Case | Module:
    if isinstance(made, Case | Module):
        return made
    if isinstance(made, tuple):
        if not 3 <= len(made) <= 5:
            raise UsageError(f"{name}() returned a tuple of {len(made)}: it must return {_WANTED}")
        return Case(*made)
    if isinstance(made, Mapping):
        known = list(inspect.signature(Case).parameters)
        for key in made:
            if key not in known:
                raise UsageError(f"{name}() returned a dict with the key {key!r}: Case takes {', '.join(known)}")
        lacking = [key for key in known[:3] if key not in made]
        if lacking:
            raise UsageError(f"{name}() returned a dict without {', '.join(lacking)}: it must return {_WANTED}")
        return Case(**made)
    if inspect.iscoroutine(made):
        made.close()
    raise UsageError(f"{name}() returned {_kind(made)}: it must return {_WANTED}")


def _kind(made: Any) -> str:
    return "None" if made is None else f"an object of type {type(made).__name__}"


def _place(found: Any, module: ModuleType) -> tuple[str, int]:
    code = getattr(inspect.unwrap(found) if callable(found) else None, "__code__", None)
    if code is not None and Path(code.co_filename).is_file():
        return code.co_filename, int(code.co_firstlineno)
    return str(getattr(module, "__file__", None) or ""), 0
