"""Frozen dataclasses to JSON and back, with nothing left out, nothing added and every type as declared."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any

_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no number for these


def plain(value: Any) -> Any:
    """Return a dataclass, or what lies in one, as JSON values."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def build(kind: Any, value: Any, where: str = "it") -> Any:
    """Make a value of a type from JSON values.

    Args:
        kind: A dataclass, an enumeration, str, int, float, bool, ``tuple[X, ...]`` or ``X | None`` of these.
        value: What `plain` made of one.
        where: Name of the place, for the message.

    Raises:
        ValueError: A field is missing, unknown or of another type; the message says which and where.
    """
    origin = typing.get_origin(kind)
    if origin is types.UnionType or origin is typing.Union:
        (inner,) = (one for one in typing.get_args(kind) if one is not type(None))
        return None if value is None else build(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is no list")
        return tuple(build(typing.get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(kind, type) and is_dataclass(kind):
        return _record(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        if value not in [one.value for one in kind]:
            raise ValueError(f"{where} is none of {', '.join(str(one.value) for one in kind)}")
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
