"""One cell of a study's grid, and the canonical JSON by whose hash cells and runs are named."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from normscope._errors import UsageError

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

#: Columns of a frame of records that no point of a grid may use as a key.
RESERVED = ("cell", "arm", "seed", "step", "probe", "site", "name", "value", "unit")


def plain(value: Any, where: str = "") -> JSON:
    """Return ``value`` as plain JSON with one form for each meaning.

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
        return {str(key): plain(value[key], f"{where}.{key}" if where else key) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{k}]") for k, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy scalar, without importing NumPy
        return plain(value.item(), where)
    raise UsageError(f"{where or 'the configuration'} is a {type(value).__name__}, which has no JSON form")


def canonical(value: Any) -> str:
    """Return the canonical JSON text of ``value``: sorted keys, no spaces, ASCII only, one form for each number."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode("ascii")).hexdigest()[:16]


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One arm at one seed at one point of a study's grid: what is run as a whole, or not at all.

    Two cells are equal if their configurations are; their ``id`` is then the same on every machine.

    Attributes:
        study: Slug of the study.
        arm: Name of the arm.
        seed: Seed of initialisation, batch order and split.
        point: Coordinates in the grid (learning rate, width, ...): each becomes a column of the frame.
        settings: Whatever else determines the numbers (steps, data, preset); part of the name, not of the frame.
        id: First 16 hexadecimal digits of the SHA-256 of the canonical JSON of all of these.

    Raises:
        UsageError: A coordinate is called like a column of the record frame, or a part has no JSON form.

    Example:
        >>> a = Cell("demo", "none", 0, {"lr": 0.1, "width": 64})
        >>> b = Cell("demo", "none", 0, {"width": 64.0, "lr": 0.1})
        >>> a == b and a.id == b.id
        True
    """

    study: str
    arm: str
    seed: int
    point: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        """Copy the mappings in their plain form, so that nothing outside can change a cell after it is named."""
        taken = [key for key in self.point if key.lower() in RESERVED]
        if taken:
            raise UsageError(f"grid coordinate {taken[0]!r} is the name of a record column; call it something else")
        object.__setattr__(self, "seed", int(self.seed))
        object.__setattr__(self, "point", plain(self.point, "point"))
        object.__setattr__(self, "settings", plain(self.settings, "settings"))
        object.__setattr__(self, "id", digest(self._plain()))

    def _plain(self) -> dict[str, Any]:
        return {
            "study": self.study,
            "arm": self.arm,
            "seed": self.seed,
            "point": self.point,
            "settings": self.settings,
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cell):
            return NotImplemented
        return canonical(self._plain()) == canonical(other._plain())

    def __hash__(self) -> int:
        return hash(self.id)

    def to_json(self) -> str:
        """Return the canonical JSON from which `from_json` makes an equal cell."""
        return canonical(self._plain())

    @classmethod
    def from_json(cls, text: str) -> "Cell":
        """Make the cell that `to_json` wrote.

        Raises:
            UsageError: The text is no JSON object of a cell.
        """
        try:
            found = json.loads(text)
            return cls(found["study"], found["arm"], found["seed"], found["point"], found["settings"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"not the JSON of a cell ({type(error).__name__}: {error})") from None
