"""Find studies by slug, and users' own by file."""

import hashlib
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

from normscope._errors import UsageError
from normscope._unit import discover, near
from normscope.studies.study import AbstractStudy
from normscope.usercode import load_file

#: Users' own studies, by slug, whose files were named in this process.
_OWN: dict[str, AbstractStudy] = {}


def all() -> list[AbstractStudy]:
    """Return every study of the package, in the order of its card."""
    from normscope.studies import claims

    found = discover(claims, AbstractStudy)  # type: ignore[type-abstract]
    return sorted((kind() for kind in found), key=lambda study: study.CARD)


def get(slug: str) -> AbstractStudy:
    """Return a study by its slug, or a user's own by the path of its file, which ends in ``.py`` and is executed.

    Raises:
        UsageError: No study has the slug; the message names the nearest. Or the file holds no study that can be used.
    """
    if slug.endswith(".py"):
        return from_file(slug)
    found = {study.CODE: study for study in all()} | _OWN
    if slug in found:
        return found[slug]
    raise UsageError(f"no study is called {slug!r}: did you mean {near(slug, found)}?")


def from_file(path: str | Path) -> AbstractStudy:
    """Load a user's own study. The file is Python, and is executed.

    From then on its slug is known in this process. It may import modules that lie beside it; the run's configuration
    holds the hash of the file itself, not of these.

    Args:
        path: A file with one class derived from ``AbstractStudy``.

    Raises:
        UsageError: No such file, an error in it, no study or several, or one that lacks something; one line says what.
    """
    file = Path(path)
    before = set(sys.modules)
    module = load_file(file)
    kinds = [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, AbstractStudy) and kind.__module__ == module.__name__
    ]
    if len(kinds) != 1:
        raise UsageError(f"{file} must hold one class derived from AbstractStudy, and holds {len(kinds)}")
    kind = kinds[0]
    _complete(kind, file)
    folder = file.resolve().parent
    beside = [sys.modules[name] for name in set(sys.modules) - before]
    _by_value(module, *(found for found in beside if _lies_in(found, folder)))
    kind.SOURCE_FILE = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    study = kind()
    _OWN[study.CODE] = study
    return study


def _by_value(*modules: ModuleType) -> None:
    """Have worker processes get a file's classes by value: they cannot import a file that lies anywhere."""
    try:  # joblib has a copy of its own in older versions
        pickler = importlib.import_module("joblib.externals.cloudpickle")
    except ImportError:
        pickler = importlib.import_module("cloudpickle")
    for module in modules:
        pickler.register_pickle_by_value(module)


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Return whether a module lies in a folder or below it, and is no installed package there."""
    file = Path(getattr(module, "__file__", None) or "/").resolve()
    return folder in file.parents and "site-packages" not in file.parts


def _complete(kind: type[AbstractStudy], file: Path) -> None:
    """Say in one line what a study lacks."""
    undone = sorted(getattr(kind, "__abstractmethods__", ()))
    undone += [
        name
        for name in ("CODE", "TOPIC", "CLAIM", "ENDPOINT", "MARGIN", "PRESETS", "SOURCES")
        if not hasattr(kind, name)
    ]
    if undone:
        raise UsageError(f"{file}: {kind.__name__} lacks {', '.join(undone)}")
    kind.page()
    if not re.fullmatch(r"[a-z][a-z0-9-]+", kind.CODE):
        raise UsageError(f"{file}: CODE {kind.CODE!r} must be lower-case words joined by hyphens")
    if kind.CODE in {study.CODE for study in all()}:
        raise UsageError(f"{file}: a study of the package is called {kind.CODE} already: choose another CODE")
