"""Reads a checkout as text: files, rooms, imports, lengths. Nothing of the checkout is imported or run.

A *room* is a top-level package or file under ``src/normscope``; a *unit* is one file of a room that is found by being
there: a probe, a rule, a study, a layer.
"""

import ast
import gc
import re
import statistics
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

# Two floors whose files begin with an underscore: not for users of the package, but public among its rooms.
PRIVATE_TO_USERS = frozenset({"_errors", "_unit"})
# Scripts that users copy: they import the package itself, as users do.
AS_USERS = frozenset({"examples"})
FILE_LINES = 300
FUNCTION_LINES = 60
WHITE_BOX = re.compile(r"#\s*white box: \S+ \S+")

_PUBLIC_OF_TUPLES = frozenset({"_asdict", "_fields", "_field_defaults", "_make", "_replace"})
_PACKAGE_PATH = re.compile(r"normscope(\.\w+)+")


class Import(NamedTuple):
    """One imported name.

    Attributes:
        module: Dotted path of the module that the name is taken from, or that is imported.
        name: The name taken from it; None where the module itself is imported.
        line: Line of the statement, counted from 1.
        late: Whether it is inside a function.
        typing: Whether it is under ``if TYPE_CHECKING``.
    """

    module: str
    name: str | None
    line: int
    late: bool
    typing: bool


class Function(NamedTuple):
    """One function or method: its qualified name, and its lines from ``def`` to the end, docstring included."""

    name: str
    lines: int


@dataclass(frozen=True)
class SourceFile:
    """One Python file, parsed.

    Attributes:
        path: Its path below the root of the checkout.
        module: Its dotted path; that of the package for an ``__init__.py``.
        text: What it holds.
    """

    path: Path
    module: str
    text: str

    @property
    def is_package(self) -> bool:
        """Whether the file is the ``__init__.py`` of a package."""
        return self.path.name == "__init__.py"

    @property
    def folder(self) -> str:
        """Dotted path of the package that holds the file."""
        return self.module if self.is_package else self.module.rpartition(".")[0]

    @property
    def room(self) -> str:
        """Name of the room; empty for the files that are the package itself."""
        parts = self.module.split(".")
        return parts[1] if len(parts) > 1 and parts[1] != "__main__" else ""

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the text."""
        return self.text.splitlines()

    @cached_property
    def _nodes(self) -> "_Nodes":
        """What one walk over the syntax tree finds."""
        collecting = gc.isenabled()
        gc.disable()  # a syntax tree has no cycles, and the collector takes most of the time that reading takes
        try:
            return _Nodes(ast.parse(self.text))
        finally:
            if collecting:
                gc.enable()

    @cached_property
    def imports(self) -> list[Import]:
        """Every import, wherever it stands, ``import_module("a.b")`` of a literal path among them."""
        found = []
        for node, late, typing in self._nodes.imports:
            if isinstance(node, ast.Import):
                found += [Import(alias.name, None, node.lineno, late, typing) for alias in node.names]
            else:
                module = self._absolute(node)
                found += [Import(module, alias.name, node.lineno, late, typing) for alias in node.names]
        for call, late in self._nodes.calls:
            if _called(call) in ("import_module", "__import__") and isinstance(call.args[0], ast.Constant):
                found.append(Import(call.args[0].value, None, call.lineno, late, typing=False))
        return found

    def _absolute(self, node: ast.ImportFrom) -> str:
        """Return the module of a ``from`` import, dots in front resolved."""
        if not node.level:
            return node.module or ""
        parts = self.folder.split(".")
        kept = parts[: len(parts) - node.level + 1]
        return ".".join([*kept, node.module] if node.module else kept)

    @cached_property
    def bound(self) -> dict[str, str]:
        """Names that an import of this file binds to something of normscope, and the dotted path of each."""
        bound = {}
        for node, _, _ in self._nodes.imports:
            if isinstance(node, ast.ImportFrom):
                module = self._absolute(node)
                if module.partition(".")[0] == "normscope":
                    bound |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}
            else:
                for alias in node.names:
                    if alias.name.partition(".")[0] == "normscope":
                        bound[alias.asname or "normscope"] = alias.name if alias.asname else "normscope"
        return bound

    @cached_property
    def attributes(self) -> list[tuple[str, str, int]]:
        """(dotted path, attribute, line) of each attribute taken from a name that an import binds to normscope's.

        Besides ``module.name``, ``setattr(module, "name", ...)`` and ``getattr(module, "name")`` count, and so do
        strings that are a dotted path of the package: tests replace private names that way.
        """
        if not self.bound and "normscope." not in self.text:
            return []
        taken = [(path, node.attr, node.lineno) for node in self._nodes.attributes if (path := self._path(node.value))]
        for call, _ in self._nodes.calls:
            if _called(call) in ("setattr", "getattr", "delattr", "object") and len(call.args) > 1:
                owner, name = call.args[:2]
                if isinstance(name, ast.Constant) and isinstance(name.value, str) and (path := self._path(owner)):
                    taken.append((path, name.value, call.lineno))
        for node in self._nodes.strings:
            if _PACKAGE_PATH.fullmatch(node.value):
                path, _, name = node.value.rpartition(".")
                taken.append((path, name, node.lineno))
        return taken

    def _path(self, node: ast.expr) -> str | None:
        """Return the dotted path of an expression that begins with a name bound to normscope's, else None."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in self.bound:
            return ".".join([self.bound[node.id], *reversed(parts)])
        return None

    @property
    def functions(self) -> list[Function]:
        """Every function and method, nested ones too."""
        return self._nodes.functions

    @cached_property
    def docstring_lines(self) -> int:
        """How many lines the docstrings of module, classes and functions span."""
        return sum(last - first + 1 for first, last in self._nodes.docstrings)

    @cached_property
    def code_lines(self) -> int:
        """How many lines hold code: neither blank, nor only a comment, nor of a docstring."""
        inside = {line for first, last in self._nodes.docstrings for line in range(first, last + 1)}
        return sum(
            bool(line.strip()) and not line.lstrip().startswith("#") and number not in inside
            for number, line in enumerate(self.lines, start=1)
        )

    @cached_property
    def package_names(self) -> set[str]:
        """Distinct names of normscope that the file uses.

        An imported class, function or constant is one name. An imported room or module is as many as attributes are
        taken from it: ``stats.mean`` and ``stats.interval`` are two.
        """
        taken: dict[str, set[str]] = {}
        for node in self._nodes.attributes:
            if isinstance(node.value, ast.Name):
                taken.setdefault(node.value.id, set()).add(node.attr)
        names = set()
        for name, path in self.bound.items():
            of_module = path.rpartition(".")[2] == name and name.islower() and taken.get(name)
            names |= {f"{path}.{attribute}" for attribute in taken[name]} if of_module else {path}
        return names

    @property
    def package_modules(self) -> set[str]:
        """Modules and rooms of normscope that the file imports from."""
        return {imported.module for imported in self.imports if imported.module.partition(".")[0] == "normscope"}

    def says_why(self, line: int) -> bool:
        """Whether a comment ``# white box: REASON`` stands on a line or in the comment directly above it."""
        if WHITE_BOX.search(self.lines[line - 1]):
            return True
        above = line - 2
        while above >= 0 and self.lines[above].lstrip().startswith("#"):
            if WHITE_BOX.search(self.lines[above]):
                return True
            above -= 1
        return False


class _Nodes:
    """What one walk over a syntax tree finds."""

    def __init__(self, tree: ast.Module) -> None:
        self.imports: list[tuple[ast.Import | ast.ImportFrom, bool, bool]] = []  # with: late, typing
        self.calls: list[tuple[ast.Call, bool]] = []  # calls with an argument; with: late
        self.attributes: list[ast.Attribute] = []
        self.strings: list[ast.Constant] = []
        self.functions: list[Function] = []
        self.docstrings: list[tuple[int, int]] = []  # first and last line
        self._walk(tree, "", late=False, typing=False)

    def _walk(self, node: ast.AST, prefix: str, late: bool, typing: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.imports.append((node, late, typing))
            return
        if isinstance(node, ast.Call) and node.args:
            self.calls.append((node, late))
        elif isinstance(node, ast.Attribute):
            self.attributes.append(node)
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                self.strings.append(node)
            return
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.body:
                self._walk(statement, prefix, late, typing=True)
            for statement in node.orelse:
                self._walk(statement, prefix, late, typing)
            return
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.body and ast.get_docstring(node, clean=False) is not None:
                self.docstrings.append((node.body[0].lineno, node.body[0].end_lineno or 0))
            if not isinstance(node, ast.Module):
                name = f"{prefix}{node.name}"
                prefix = f"{name}."
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions.append(Function(name, (node.end_lineno or node.lineno) - node.lineno + 1))
                late = True
        for field in node._fields:
            value = getattr(node, field)
            if type(value) is list:
                for child in value:
                    if isinstance(child, ast.AST):
                        self._walk(child, prefix, late, typing)
            elif isinstance(value, ast.AST) and not isinstance(value, ast.Name | ast.expr_context | ast.operator):
                self._walk(value, prefix, late, typing)


def _called(call: ast.Call) -> str:
    """Return the last name of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


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
