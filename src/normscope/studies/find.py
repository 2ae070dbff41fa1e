"""Find studies by slug, users' own by file, and runs by folder."""

import hashlib
import inspect
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from normscope._errors import StoreError, UsageError, shown
from normscope._unit import discover, meant
from normscope.records import Store, Verdict
from normscope.records.addresses import place_of
from normscope.records.places import Folder
from normscope.running import register_by_value
from normscope.studies.runs import Run, config_of
from normscope.studies.study import AbstractStudy
from normscope.usercode import load_file, users_code

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
    raise UsageError(f"no study is called {slug!r}: {meant(slug, found, '`normscope study list` shows all names')}")


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
    register_by_value(module, *(found for found in beside if _lies_in(found, folder)))
    kind.SOURCE_FILE = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    kind.SOURCE_PATH = str(file.resolve())
    with users_code(f"making {kind.__name__}", file):
        study = kind()
    _OWN[study.CODE] = study
    return study


def run(study: AbstractStudy | str, **options: Any) -> Verdict:
    """Run a study, or what of it is not yet complete, and judge it.

    Args:
        study: A study or its slug.
        options: ``out``, ``seeds``, ``preset`` and so on, as ``AbstractStudy.run`` takes them.
    """
    return (get(study) if isinstance(study, str) else study).run(**options)


def load(folder: str | Path) -> list[Run]:
    """Open the runs that lie in a folder: the folder's own, or those of its subfolders.

    Raises:
        StoreError: No run lies there.
        UsageError: A run is of a study that this version does not have.
    """
    root = Path(folder)
    place = place_of(folder)
    here = place.holds("run.json")
    folders = [root] if here else [each.path for each in place.places_with("run.json")]
    runs = []
    for path in folders:
        store = Store.open(path)
        config = config_of(store, required=here)
        if "study" in config:
            runs.append(Run(_study_of(store, config), store))
    if not runs:
        raise StoreError(_nothing_there(root))
    return sorted(runs, key=lambda found: found.study.CARD)


def _nothing_there(root: Path) -> str:
    """Say why a folder has no runs, and which to give."""
    place = place_of(root)
    if not isinstance(place, Folder):
        return f"{place} holds no run: give the address that was --out of a study or a comparison"
    if not root.exists():
        return f"{root} does not exist: give the folder that was --out of a study, or record_to of a scope"
    if scopes := sorted({path.parent for path in root.glob("*/scope-*.parquet")}):
        more = f" and {len(scopes) - 3} more" if len(scopes) > 3 else ""
        return f"{root} holds folders of scopes: give one of them: {', '.join(map(str, scopes[:3]))}{more}"
    return (
        f"{root} holds neither the run of a study nor the records of a scope: give the folder that was --out of a "
        "study, or record_to of a scope"
    )


def _study_of(store: Store, config: Mapping[str, Any]) -> AbstractStudy:
    """Return the study that made a run. Code of a user's own runs only if they named its file in this process."""
    if "source_file" not in config:
        return get(config["study"])
    try:
        study = get(config["study"])
    except UsageError:
        raise UsageError(
            f"{store.place} is a run of a study of your own, {config['study']}: name its file with --study FILE.py"
        ) from None
    if config["source_file"] != study.SOURCE_FILE:
        raise UsageError(
            f"the file of {study.CODE} has changed since the records in {store.place} were made, and a rule stands "
            "before its run: take the old file, or run the new one with another --out"
        )
    return study


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Return whether a module lies in a folder or below it, and is no installed package there."""
    file = Path(getattr(module, "__file__", None) or "/").resolve()
    return folder in file.parents and "site-packages" not in file.parts


#: Attributes of a study with their types, and the types in words.
_ATTRIBUTES: tuple[tuple[str, Any, str], ...] = (
    *((name, str, "a text") for name in ("CODE", "TOPIC", "CLAIM", "ENDPOINT", "MARGIN_REASON")),
    ("MARGIN", (int, float), "a number"),
    ("CARD", int, "a whole number"),
    ("VERSION", int, "a whole number"),
    ("SOURCES", tuple, "a tuple of texts"),
    ("PRESETS", Mapping, "a mapping, such as presets(quick={...})"),
    ("POINTS", Mapping, "a mapping of a point's name to the name of a setting"),
    ("ARMS", Mapping, "a mapping of arms"),
)


def _complete(kind: type[AbstractStudy], file: Path) -> None:
    """Say in one line what a study lacks."""
    undone = sorted(getattr(kind, "__abstractmethods__", ()))
    # Each is given by the study, or made by another that it gives.
    pairs = ((AbstractStudy.judge, "judge", "contrasts"), (AbstractStudy.grid, "grid", "ARMS"))
    for inherited, name, other in pairs:
        if getattr(kind, name) is inherited and getattr(kind, other) is getattr(AbstractStudy, other):
            undone.append(f"{other} (or {name})")
    undone += [
        name
        for name in ("CODE", "TOPIC", "CLAIM", "ENDPOINT", "MARGIN", "PRESETS", "SOURCES")
        if not hasattr(kind, name)
    ]
    if undone:
        raise UsageError(f"{file}: {kind.__name__} lacks {', '.join(undone)}")
    kind.page()
    for name, wanted, words in _ATTRIBUTES:
        value = getattr(kind, name)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise UsageError(f"{file}: {name} is {shown(value)}: it must be {words}")
    if odd := [each for each in kind.SOURCES if not isinstance(each, str)]:
        raise UsageError(f"{file}: SOURCES holds {shown(odd[0])}: it must be a tuple of texts")
    for name, preset in kind.PRESETS.items():
        if not isinstance(name, str) or not isinstance(preset, Mapping):
            raise UsageError(f"{file}: the preset {shown(name)} is {shown(preset)}: it must be a mapping of settings")
    if not 0 <= kind.MARGIN < math.inf:
        raise UsageError(f"{file}: MARGIN is {kind.MARGIN}: give the smallest size that matters, 0 or more")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", kind.CODE):
        raise UsageError(f"{file}: CODE {kind.CODE!r} must be lower-case words joined by hyphens")
    if kind.CODE in {study.CODE for study in all()}:
        raise UsageError(f"{file}: a study of the package is called {kind.CODE} already: choose another CODE")
