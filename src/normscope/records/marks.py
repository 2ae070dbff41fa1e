"""The mark of a complete cell: what the cell is, and by what its part is known to be as it was written."""

import hashlib
import json
from dataclasses import dataclass

from normscope._errors import NormscopeError
from normscope.records._table import DamagedError
from normscope.records.cell import Cell
from normscope.records.json import digest, loads


def content_digest(content: bytes, name: str = "") -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a content and, where it is given, its name."""
    return hashlib.sha256(name.encode() + content).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Mark:
    """What the file ``cell-CELL.json`` holds.

    Attributes:
        cell: The cell.
        wall_s: Seconds that it took.
        records: How many records its part holds; None in a mark of the first layout.
        part: Digest of the part's content; None in a mark of the first layout.
        made_by: Digest of what else made the records: the user's file and the versions of packages; None as above.
    """

    cell: Cell
    wall_s: float
    records: int | None = None
    part: str | None = None
    made_by: str | None = None

    def to_json(self) -> str:
        """Return the file's text, with a digest of all that it says."""
        told = {
            "cell": json.loads(self.cell.to_json()),
            "wall_s": self.wall_s,
            "records": self.records,
            "part": self.part,
            "made_by": self.made_by,
        }
        return json.dumps(told | {"check": digest(told)}) + "\n"

    @classmethod
    def from_json(cls, text: bytes, name: str, *, proven: bool) -> "Mark":
        """Read what `to_json` wrote.

        Args:
            text: The file's content.
            name: Id of the cell, as the file's name says it.
            proven: Whether the run's layout is one whose marks hold digests.

        Raises:
            DamagedError: It is not what was written.
        """
        try:
            told = loads(text)
            check = told.pop("check", None)
            cell = Cell.from_json(json.dumps(told["cell"]))
            mark = cls(cell, float(told["wall_s"]), told.get("records"), told.get("part"), told.get("made_by"))
            whole = check == digest(told) or (check is None and not proven)
        except (ValueError, TypeError, KeyError, AttributeError, NormscopeError):
            raise DamagedError("it is no mark of a cell") from None
        if not whole or mark.cell.id != name:
            raise DamagedError("it is not what was written")
        return mark

    def require(self, content: bytes) -> None:
        """Refuse the content of a part that is not the part that was written with this mark.

        Raises:
            DamagedError: It is another.
        """
        if self.part is not None and content_digest(content) != self.part:
            raise DamagedError("it is not what was written")
