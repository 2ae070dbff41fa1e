"""What a project says of `normscope check` in a file: the table ``[tool.normscope]`` of its ``pyproject.toml``.

Keys: ``select`` and ``ignore``, lists of codes, names or beginnings of codes; ``ignore`` may be a table of code and
reason instead, whose findings are listed as ignored; ``level``, the lowest severity that makes the exit code 1;
``per-path-ignores``, a table of patterns of modules' paths, each with a table of code and reason.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from normscope._errors import UsageError
from normscope._unit import near
from normscope.checking.findings import Findings
from normscope.records import Finding, Severity
from normscope.records.reading import text_of_file
from normscope.rules import chosen

_PATHS = "per-path-ignores"
_KEYS = ("select", "ignore", "level", _PATHS)
_LARGEST = 10_000_000  # bytes of a file of settings
_FILE = "pyproject.toml"
_LEVELS = tuple(severity.value for severity in Severity)
_REASONS = 'a table of code and reason, such as {NS105 = "small batches on purpose"}'
Reason = tuple[str, frozenset[str], str]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a project says.

    Attributes:
        file: Where it says so; None where nothing is said.
        select: Codes, names or beginnings of codes of rules that run; all if None.
        ignore: The same of rules that do not run.
        level: The lowest severity that makes the exit code 1; None where nothing is said.
        reasons: Why findings are not reported: a pattern of modules' paths, the codes, and the reason.
    """

    file: Path | None = None
    select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] | None = None
    level: str | None = None
    reasons: tuple[Reason, ...] = ()

    @property
    def shown(self) -> str:
        """The file, relative to where the command was given if it lies below; empty if there is none."""
        if self.file is None:
            return ""
        below = self.file.is_relative_to(Path.cwd())
        return str(self.file.relative_to(Path.cwd()) if below else self.file)

    def reason(self, code: str, place: str) -> str:
        """Return why a finding at a place is not reported; empty if it is."""
        fits = (why for pattern, codes, why in self.reasons if code in codes and fnmatchcase(place, pattern))
        return next(fits, "")

    def apply(self, found: Findings, marked: Callable[[str, list[str]], str] | None = None) -> Findings:
        """Return findings of which those are ignored that have a reason at each place.

        Args:
            found: The findings.
            marked: Returns the reason that the code of the project has for a code at places.
        """

        def reason(finding: Finding) -> str:
            places = finding.places or ("",)
            own = [self.reason(finding.code, place) for place in places]
            left = [place for place, why in zip(places, own, strict=True) if not why]
            excepted = all(marked is not None and marked(finding.code, [place]) for place in left)
            return next(filter(None, own), "") if excepted else ""

        reasons = [(finding, reason(finding)) for finding in found]
        kept = tuple(finding for finding, why in reasons if not why)
        ignored = tuple((finding, why) for finding, why in reasons if why)
        return replace(found, found=kept, ignored=(*found.ignored, *ignored))


def settings_for(start: Path) -> Settings:
    """Return what the nearest ``pyproject.toml`` with a table ``[tool.normscope]`` says, from a folder upward.

    Raises:
        UsageError: A file on the way is no TOML or cannot be read, or the table holds what it must not.
    """
    for folder in (start, *start.parents):
        path = folder / _FILE
        if path.is_file() and (table := _tool(_read(path), path)) is not None:
            return _settings(table, path)
    return Settings()


def settings_in(path: Path) -> Settings:
    """Return what a file says: in its table ``[tool.normscope]`` or, where it is no ``pyproject.toml``, at its top.

    Raises:
        UsageError: It is missing or no TOML, or holds what it must not.
    """
    document = _read(path)
    table = _tool(document, path)
    if table is None:
        if path.name == _FILE:
            raise UsageError(f"{path} has no table [tool.normscope]")
        table = document
    return _settings(table, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text_of_file(path, _LARGEST))
    except RecursionError:
        raise UsageError(f"{path} is no valid TOML: it is nested too deeply") from None
    except ValueError as error:  # of TOML, or of a number with thousands of digits
        raise UsageError(f"{path} is no valid TOML: {' '.join(str(error).split())}") from None


def _tool(document: Mapping[str, Any], path: Path) -> Mapping[str, Any] | None:
    tools = document.get("tool", {})
    table = tools.get("normscope") if isinstance(tools, Mapping) else None
    if table is not None and not isinstance(table, Mapping):
        raise UsageError(f"{path}: tool.normscope must be a table, not {_kind(table)}")
    return table


def _settings(table: Mapping[str, Any], path: Path) -> Settings:
    for key in table:
        if key not in _KEYS:
            raise UsageError(f"{path}: there is no setting {key!r}: did you mean {near(key, _KEYS)}?")
    ignore, level, reasons = table.get("ignore"), table.get("level"), list[Reason]()
    if isinstance(ignore, Mapping):
        reasons += _reasons(ignore, "*", path, "ignore")
        ignore = None
    elif ignore is not None and not isinstance(ignore, list):
        raise UsageError(f"{path}: ignore must be a list of codes or {_REASONS}, not {_kind(ignore)}")
    places = table.get(_PATHS, {})
    if not isinstance(places, Mapping):
        raise UsageError(f"{path}: {_PATHS} must be a table of patterns of modules' paths, not {_kind(places)}")
    for pattern, said in places.items():
        if not isinstance(said, Mapping):
            raise UsageError(f"{path}: {_PATHS}.{pattern!r} must be {_REASONS}, not {_kind(said)}")
        reasons += _reasons(said, pattern, path, f"{_PATHS}.{pattern!r}")
    if level is not None and (not isinstance(level, str) or level not in _LEVELS):
        nearest = near(level, _LEVELS) if isinstance(level, str) else " or ".join(_LEVELS)
        raise UsageError(f"{path}: there is no level {level!r}: did you mean {nearest}?")
    select = _codes(table.get("select"), path, "select")
    return Settings(path, select, _codes(ignore, path, "ignore"), level, tuple(reasons))


def _codes(given: Any, path: Path, key: str) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list):
        raise UsageError(f'{path}: {key} must be a list of codes, such as ["NS1"], not {_kind(given)}')
    for code in given:
        _chosen(code, path, key)
    return tuple(given)


def _chosen(code: Any, path: Path, key: str) -> frozenset[str]:
    if not isinstance(code, str) or not code:
        raise UsageError(f"{path}: {key} must hold codes or names of rules, not {code!r}")
    try:
        return frozenset(rule.CODE for rule in chosen([code]))
    except UsageError as error:
        raise UsageError(f"{path}: {key}: {error}") from None


def _reasons(said: Mapping[str, Any], pattern: str, path: Path, key: str) -> Iterable[Reason]:
    for code, reason in said.items():
        codes = _chosen(code, path, key)
        if not isinstance(reason, str) or not reason.strip():
            raise UsageError(f"{path}: {key}: say why {code} is to be ignored: a reason in words")
        yield pattern, codes, reason


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", str: "a text", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return kinds.get(type(value), f"a {type(value).__name__}")
