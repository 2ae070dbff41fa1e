"""Reads a checkout as text: files, rooms, imports, lengths. Nothing of the checkout is imported or run.

A *room* is a top-level package or file under ``src/normscope``; a *unit* is one file of a room that is found by being
there: a probe, a rule, a study, a layer.
"""

import re
import statistics
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from kit.source_files import Import, SourceFile

# Two floors whose files begin with an underscore: not for users of the package, but public among its rooms.
PRIVATE_TO_USERS = frozenset({"_errors", "_unit"})
# Scripts that users copy: they import the package itself, as users do.
AS_USERS = frozenset({"examples"})
FILE_LINES = 300
FUNCTION_LINES = 60

_PUBLIC_OF_TUPLES = frozenset({"_asdict", "_fields", "_field_defaults", "_make", "_replace"})


class PrivateUse(NamedTuple):
    """A private name that a file of another folder or room uses: the file, the dotted path, the line."""

    path: Path
    target: str
    line: int


class House:
    """The files of one checkout.

    Args:
        root: The checkout: the folder that holds ``src`` and ``tests``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = {file.module: file for file in _read(root, root / "src", root / "src" / "normscope")}
        self.tests = list(_read(root, root, root / "tests"))

    def target(self, imported: Import) -> str | None:
        """Return the module of this package that an import reads, None for another package's."""
        if (imported.module, imported.name) == ("normscope", "__version__"):
            return None  # a number, not the rooms that the package's other names lead to
        if imported.name is not None and f"{imported.module}.{imported.name}" in self.files:
            return f"{imported.module}.{imported.name}"
        module = imported.module
        while module and module not in self.files:
            module = module.rpartition(".")[0]
        return module or None

    def edges(self, *, late: bool = True, typing: bool = False) -> dict[str, set[str]]:
        """Return which modules each module imports.

        Args:
            late: Whether imports inside functions count.
            typing: Whether imports under ``if TYPE_CHECKING`` count.
        """
        return {
            module: {
                target
                for imported in file.imports
                if (late or not imported.late) and (typing or not imported.typing)
                if (target := self.target(imported)) and target != module
            }
            for module, file in self.files.items()
        }

    def circles(self, *, late: bool = True, typing: bool = False) -> list[list[str]]:
        """Return every circle of imports: modules that each reach all the others, in the order of names."""
        return [sorted(group) for group in _strongly_connected(self.edges(late=late, typing=typing)) if len(group) > 1]

    def upward(self, floors: list[list[str]], *, typing: bool = True) -> set[str]:
        """Return every import that does not go down, as ``module -> module``.

        Args:
            floors: The rooms of each floor, highest first. Rooms of one floor may not import each other.
            typing: Whether imports under ``if TYPE_CHECKING`` count.
        """
        height = {room: -number for number, rooms in enumerate(floors) for room in rooms}
        wrong = set()
        for module, targets in self.edges(typing=typing).items():
            for target in targets:
                room, other = self.files[module].room, self.files[target].room
                as_users = room in AS_USERS and not other
                if room != other and room and not as_users and (not other or height[other] >= height[room]):
                    wrong.add(f"{module} -> {target}")
        return wrong

    @property
    def rooms(self) -> set[str]:
        """The rooms of the package."""
        return {file.room for file in self.files.values()} - {""}

    def _uses(self, file: SourceFile) -> Iterator[tuple[str, int]]:
        """Yield (dotted path, line) of every name of this package that a file uses."""
        for imported in file.imports:
            if imported.module.partition(".")[0] == "normscope":
                yield f"{imported.module}.{imported.name}" if imported.name else imported.module, imported.line
        for path, attribute, line in file.attributes:
            yield f"{path}.{attribute}", line

    def _private_part(self, dotted: str) -> tuple[str, str] | None:
        """Return (owner, private name) of the first private part of a path; the owner is a module or a class."""
        parts = dotted.split(".")
        for place, part in enumerate(parts):
            if not part.startswith("_") or part.startswith("__") or part in _PUBLIC_OF_TUPLES:
                continue
            if not (place == 1 and part in PRIVATE_TO_USERS):
                return ".".join(parts[:place]), part
        return None

    def private_across_folders(self) -> list[PrivateUse]:
        """Return every use in ``src`` of a private name outside the folder that holds it.

        A private module, and a private name of a module, belong to the folder that the file is in; folders below it
        are inside it.
        """
        found = []
        for file in self.files.values():
            for dotted, line in self._uses(file):
                if private := self._private_part(dotted):
                    owner, name = private
                    while owner not in self.files:  # a class: its file
                        owner = owner.rpartition(".")[0]
                    if not f"{file.folder}.".startswith(f"{self.files[owner].folder}."):
                        found.append(PrivateUse(file.path, f"{private[0]}.{name}", line))
        return found

    def private_in_tests(self) -> list[PrivateUse]:
        """Return every private name of the package that a test file uses."""
        return [
            PrivateUse(file.path, f"{private[0]}.{private[1]}", line)
            for file in self.tests
            for dotted, line in self._uses(file)
            if (private := self._private_part(dotted))
        ]

    def test_file(self, path: Path) -> SourceFile:
        """Return the test file at a path below the root."""
        return next(file for file in self.tests if file.path == path)

    def long_functions(self) -> dict[str, int]:
        """Return the lines of every function of ``src`` that is over the bound, by ``path:name``."""
        return {
            f"{file.path}:{function.name}": function.lines
            for file in self.files.values()
            for function in file.functions
            if function.lines > FUNCTION_LINES
        }

    def long_files(self) -> dict[str, int]:
        """Return the lines of every file of ``src`` that is over the bound, by path."""
        return {str(file.path): len(file.lines) for file in self.files.values() if len(file.lines) > FILE_LINES}

    def units(self, room: str) -> list[SourceFile]:
        """Return the files of a room that are units; studies are in ``claims`` where there is such a folder."""
        folder = f"normscope.{room}.claims" if f"normscope.{room}.claims" in self.files else f"normscope.{room}"
        base = {"studies": "AbstractStudy|Training|Identity", "rules": "AbstractRule"}[room]
        return [
            file
            for file in self.files.values()
            if file.folder == folder and not file.is_package and not file.path.name.startswith("_")
            if re.search(rf"^class \w+\((\w+\.)?\w*({base})\w*", file.text, re.MULTILINE)
        ]

    def figures(self) -> dict[str, object]:
        """Return the figures of the house, by what they count."""
        files = self.files.values()
        units = {"a study": self.units("studies"), "a rule": self.units("rules")}
        names = {kind: [len(unit.package_names) for unit in found] for kind, found in units.items()}
        modules = {kind: [len(unit.package_modules) for unit in found] for kind, found in units.items()}
        return {
            "files in src": len(files),
            "lines in src": sum(len(file.lines) for file in files),
            "lines of code": sum(file.code_lines for file in files),
            "lines of docstrings": sum(file.docstring_lines for file in files),
            f"functions over {FUNCTION_LINES} lines": len(self.long_functions()),
            f"files over {FILE_LINES} lines": len(self.long_files()),
            "circles of imports": len(self.circles(late=False)),
            "circles, late imports counted": len(self.circles()),
            "circles, late and typing imports counted": len(self.circles(typing=True)),
            "private names used across folders": len({use[:2] for use in self.private_across_folders()}),
            "lines in tests": sum(len(file.lines) for file in self.tests),
            "test files": sum(file.path.name.startswith("test_") for file in self.tests),
            "files of tests that use private names": len({use.path for use in self.private_in_tests()}),
            **{
                f"{what} (median, most)": (statistics.median(counts), max(counts))
                for what, counts in {
                    **{f"names that {kind} uses": counts for kind, counts in names.items()},
                    **{f"modules that {kind} imports": counts for kind, counts in modules.items()},
                }.items()
                if counts
            },
        }


def _read(root: Path, base: Path, folder: Path) -> Iterator[SourceFile]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(base).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        with tokenize.open(path) as opened:
            yield SourceFile(path.relative_to(root), module, opened.read())


def _strongly_connected(edges: dict[str, set[str]]) -> Iterable[set[str]]:
    """Yield the strongly connected components of a graph (Tarjan, without recursion)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    on_stack: set[str] = set()
    stack: list[str] = []
    for start in sorted(edges):
        if start in order:
            continue
        order[start] = low[start] = len(order)
        stack.append(start)
        on_stack.add(start)
        path = [(start, iter(sorted(edges[start])))]
        while path:
            node, rest = path[-1]
            target = next(rest, None)
            if target is None:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[node])
                if low[node] == order[node]:
                    group = set()
                    while node not in group:
                        member = stack.pop()
                        on_stack.discard(member)
                        group.add(member)
                    yield group
            elif target not in order:
                order[target] = low[target] = len(order)
                stack.append(target)
                on_stack.add(target)
                path.append((target, iter(sorted(edges[target]))))
            elif target in on_stack:
                low[node] = min(low[node], order[target])
