"""Find what is to be checked: ``FILE_OR_MODULE:FACTORY``."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.nn import Module

from normscope._errors import UsageError
from normscope._unit import near
from normscope.evidence import Case
from normscope.usercode import one_line

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
        line: Its line there.
    """

    made: Case | Module
    file: str = ""
    line: int = 0


def open_target(words: str) -> Target:
    """Import a file or module, call the factory in it, and return what it gives.

    Args:
        words: ``train.py:make_case`` or ``package.module:make_case``.

    Raises:
        UsageError: There is no such file, module or factory; it raises, or gives something else.
    """
    source, colon, name = words.rpartition(":")
    if not colon or not source or not name:
        raise UsageError(f"{words!r} names no factory: give FILE_OR_MODULE:FACTORY, such as train.py:make_case")
    with _importing(source):
        module = _from_file(Path(source)) if _is_file(source) else _from_name(source)
        found: Any = module
        for part in name.split("."):
            if not hasattr(found, part):
                known = [key for key in vars(found) if not key.startswith("_")] if hasattr(found, "__dict__") else []
                hint = f": did you mean {near(part, known)}?" if known else ""
                raise UsageError(f"{source} has no attribute {part!r}{hint}")
            found = getattr(found, part)
        file, line = _place(found, module)
        if not isinstance(found, Case | Module | tuple | Mapping):
            if not callable(found):
                raise UsageError(f"{name} in {source} is of type {type(found).__name__}: it must be a function")
            _takes_nothing(found, name)
            with one_line(f"{name}()"):
                found = found()
        with one_line(f"{name}()"):
            return Target(_case_of(found, name), file, line)


def _is_file(source: str) -> bool:
    path = Path(source)
    if path.is_dir():
        raise UsageError(f"{source} is a folder: give a Python file in it, or the name of a module")
    if path.is_file():
        return True
    if path.suffix == ".py" or len(path.parts) > 1:
        raise UsageError(f"there is no file {source}")
    return False


@contextmanager
def _importing(source: str) -> Iterator[None]:
    """Let imports find what lies beside the file, or where the command was given; write no compiled files."""
    beside = str(Path(source).resolve().parent) if Path(source).is_file() else str(Path.cwd())
    path, wrote = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, beside)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote
        if sys.path[:1] == [beside]:  # the user's own changes stay: lazy imports may rest on them
            sys.path[:] = path


def _from_file(path: Path) -> ModuleType:
    name = f"_normscope_checked_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=SourceFileLoader(name, str(path.resolve())))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # data classes and worker processes look their module up
    try:
        with one_line(f"importing {path}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_name(name: str) -> ModuleType:
    try:
        with one_line(f"importing {name}"):
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                    raise
                raise UsageError(f"there is no module or file called {name}") from None
            except (TypeError, ValueError):  # relative or empty names
                raise UsageError(f"{name!r} is no module's name, and there is no such file") from None
    except UsageError as error:
        raise error from None


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
