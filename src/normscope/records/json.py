"""Values to JSON and back.

`plain` writes whatever flows through the package; `build` reads dataclasses back strictly; `canonical` gives a
configuration the one text by whose hash runs and cells are named.
"""

import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeAlias

from normscope._errors import UsageError

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no number for these


def in_words(value: float) -> float | str:
    """Return a number, or ``"nan"``, ``"inf"`` or ``"-inf"``: nothing is lost, and `build` reads it back."""
    return value if math.isfinite(value) else str(float(value))


def or_null(value: float) -> float | None:
    """Return a number, or None for NaN and infinities: for readers that expect a number or nothing."""
    return value if math.isfinite(value) else None


def plain(value: Any, number: Callable[[float], Any] = in_words) -> Any:
    """Return a value as JSON values.

    Args:
        value: A dataclass, a mapping, a list or tuple, an enumeration, a scalar of NumPy or torch, or a JSON value;
            anything else is returned as it is.
        number: How a float is written: `in_words` or `or_null`.
    """
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a scalar of NumPy or torch, without importing it
        value = value.item()
    if isinstance(value, float):
        return number(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), number) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item, number) for key, item in value.items()}
    return [plain(item, number) for item in value] if isinstance(value, list | tuple) else value


def canonical_form(value: Any, where: str = "") -> JSON:
    """Return ``value`` as JSON values with one form for each meaning, for a hash.

    Mappings become dicts with sorted keys, sequences lists, NumPy scalars Python numbers, and whole floats integers
    (``1.0`` and ``1`` are the same number, so they must have the same hash).

    Args:
        value: What to convert.
        where: How a message names it.

    Raises:
        UsageError: A part of it has no JSON form: NaN, an infinity, a key that is no string, an object.
    """
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"{where or 'the configuration'} is {value}; a configuration holds finite numbers only")
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise UsageError(f"{where or 'the configuration'} has keys that are not strings; JSON needs strings")
        return {str(key): canonical_form(value[key], f"{where}.{key}" if where else key) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical_form(item, f"{where}[{k}]") for k, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy scalar, without importing NumPy
        return canonical_form(value.item(), where)
    raise UsageError(f"{where or 'the configuration'} is a {type(value).__name__}, which has no JSON form")


def canonical(value: Any) -> str:
    """Return the canonical JSON text of ``value``: sorted keys, no spaces, ASCII only, one form for each number."""
    return json.dumps(canonical_form(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode("ascii")).hexdigest()[:16]


def loads(text: str | bytes) -> Any:
    """Return the values of a JSON text.

    Raises:
        ValueError: It is no JSON, not UTF-8, or nested so deeply that it cannot be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def build(kind: Any, value: Any, where: str = "it") -> Any:
    """Make a value of a type from JSON values.

    Args:
        kind: A dataclass, an enumeration, str, int, float, bool, ``tuple[X, ...]``, ``Mapping[str, X]`` or ``X | None``
            of these.
        value: The JSON values, from `plain`.
        where: Name of the place, for the message.

    Raises:
        ValueError: A field is missing, unknown or of another type; the message says which and where.
    """
    origin = typing.get_origin(kind)
    if origin is types.UnionType or origin is typing.Union:
        (inner,) = (part for part in typing.get_args(kind) if part is not type(None))
        return None if value is None else build(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is no list")
        return tuple(build(typing.get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"{where} is no object")
        return {key: build(typing.get_args(kind)[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        return _record(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        if value not in [member.value for member in kind]:
            raise ValueError(f"{where} is none of {', '.join(str(member.value) for member in kind)}")
        return kind(value)
    if kind is float:
        if isinstance(value, str) and value in _NUMBERS:
            return _NUMBERS[value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise ValueError(f"{where} is no number")
    if type(value) is not kind:
        raise ValueError(f"{where} is no {kind.__name__}")
    return value


def _record(kind: type, value: Any, where: str) -> Any:
    """Make a dataclass of exactly its fields."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is no object")
    hints = _hints(kind)
    if missing := [name for name in hints if name not in value]:
        raise ValueError(f"{where} lacks {missing[0]!r}")
    if unknown := [name for name in value if name not in hints]:
        raise ValueError(f"{where} has an unknown {str(unknown[0])[:40]!r}")
    return kind(**{name: build(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
