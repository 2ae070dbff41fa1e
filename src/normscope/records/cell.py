"""One cell of a study's grid: an arm at a seed at a point, named by the hash of its configuration."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from normscope._errors import UsageError
from normscope.records.json import canonical, canonical_form, digest

#: Columns of a frame of records that no point of a grid may use as a key.
RESERVED = ("cell", "arm", "seed", "step", "probe", "site", "name", "value", "unit")


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One arm at one seed at one point of a study's grid; a cell is run as a whole or not at all.

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
        object.__setattr__(self, "point", canonical_form(self.point, "point"))
        object.__setattr__(self, "settings", canonical_form(self.settings, "settings"))
        object.__setattr__(self, "id", digest(self._configuration()))

    def _configuration(self) -> dict[str, Any]:
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
        return canonical(self._configuration()) == canonical(other._configuration())

    def __hash__(self) -> int:
        return hash(self.id)

    def to_json(self) -> str:
        """Return the canonical JSON from which `from_json` makes an equal cell."""
        return canonical(self._configuration())

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
