"""The base of layers, probes, rules and studies: each unit describes itself and is found by the file it lies in."""

import difflib
import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Collection, Iterator
from functools import cache
from types import ModuleType
from typing import ClassVar, TypeVar

from normscope._errors import UnitError

_FOLDERS = {"comparing": "questions"}  # of the site; any other room's units are in a folder of its own name
T = TypeVar("T", bound="Unit")


class Unit:
    """A self-describing part. The class docstring is its page in the documentation.

    Attributes:
        CODE: Stable identifier by which users name the unit (a study's slug, a probe's or layer's snake-case name).
        SOURCES: Where it comes from: paper and section, or document.
        HEADINGS: The ``## `` headings that the docstring of every unit of this kind must fill.
    """

    CODE: ClassVar[str]
    SOURCES: ClassVar[tuple[str, ...]]
    HEADINGS: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def title(cls) -> str:
        """Return the first line of the docstring."""
        return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]

    @classmethod
    def address(cls) -> str:
        """Return the address of the unit's page on the documentation site, as ``web_page`` does.

        Returns:
            Empty for a unit of the user's own, too: it has no page.
        """
        package, room = f"{cls.__module__}.".split(".")[:2]
        return web_page(_FOLDERS.get(room, room), cls.CODE) if package == __package__ else ""

    @classmethod
    def page(cls) -> dict[str, str]:
        """Split the docstring at its ``## `` headings.

        Returns:
            The text under each heading, in order.

        Raises:
            UnitError: A heading of ``HEADINGS`` is missing or empty.
        """
        _, *parts = inspect.cleandoc(cls.__doc__ or "").split("\n## ")
        page = {head.strip(): body.strip() for head, _, body in (part.partition("\n") for part in parts)}
        missing = [head for head in cls.HEADINGS if not page.get(head)]
        if missing:
            raise UnitError(
                f"{cls.__module__}.{cls.__name__}: its docstring lacks {', '.join(missing)}: write each as a heading "
                f'on a line of its own, such as "## {missing[0]}", with text below it'
            )
        return page


def web_page(folder: str, code: str) -> str:
    """Return the address of a unit's page on the documentation site.

    Args:
        folder: Of the site's reference: ``"rules"``, ``"studies"``, ``"probes"``, ``"layers"``, ``"questions"``.
        code: The unit's code.

    Returns:
        Empty where the metadata of the package name no site: its address stands there alone, as "Documentation" among
        the project's URLs.
    """
    site = documentation()
    return f"{site}/reference/{folder}/{code}.html" if site else ""


@cache
def documentation() -> str:
    """Return the address of the documentation site without a slash at its end; empty where there is none."""
    try:
        urls = importlib.metadata.metadata("normscope").get_all("Project-URL") or ()
    except importlib.metadata.PackageNotFoundError:
        return ""
    named = {name.strip().lower(): url.strip() for name, _, url in (entry.partition(",") for entry in urls)}
    return named.get("documentation", "").rstrip("/")


def discover(room: ModuleType, kind: type[T]) -> Iterator[type[T]]:
    """Yield every final ``kind`` of a room, in the order of file names.

    Files whose names begin with an underscore, and classes whose names begin with "Abstract", hold shared code and are
    passed over.
    """
    for info in pkgutil.iter_modules(room.__path__):
        if info.name.startswith("_") or info.ispkg:
            continue
        module = importlib.import_module(f"{room.__name__}.{info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            shared = inspect.isabstract(member) or member.__name__.startswith("Abstract")
            if issubclass(member, kind) and member.__module__ == module.__name__ and not shared:
                yield member


def near(name: str, known: Collection[str]) -> str:
    """Return the known names nearest to an unknown name, joined by "or"; the first few if none is near."""
    return " or ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)[:5])


def meant(name: str, known: Collection[str], otherwise: str) -> str:
    """Return what to do about an unknown name: the known names that may be meant, else where to find all.

    Args:
        name: The unknown name.
        known: All names.
        otherwise: What is said where no name is near.
    """
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else otherwise
