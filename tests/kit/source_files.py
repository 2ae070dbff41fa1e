"""Reads one Python file of a checkout as text: its imports, functions, names, comments and lengths.

Nothing of the checkout is imported or run.
"""

import ast
import gc
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

WHITE_BOX = re.compile(r"#\s*white box: \S+ \S+")
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
