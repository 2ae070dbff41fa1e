"""A defect, found and proven."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from normscope.records.json import plain


class Severity(StrEnum):
    """How bad a finding is: an error gives wrong results, a warning costs, an information may be on purpose."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """Return 0 for an error, 1 for a warning, 2 for an information."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause, however many places it shows at.

    Attributes:
        code: The rule's code, as ``NS102``.
        slug: The rule's name, after the defect.
        severity: How bad it is.
        message: What is wrong, in a sentence with numbers.
        places: Qualified names of the modules where it shows; ``""`` stands for the whole model or its training.
        quantity: What was measured, in words.
        measured: The value; None where nothing is measured but a fact of structure.
        bound: What it was held against.
        cost: What it costs, in a sentence: the loss or accuracy that it explains, where that could be measured.
        fix: What to do, in a sentence; empty where nothing mechanical helps.
        safe: Whether the fix leaves the network's function and its training as they were, or strictly repairs them.
        fixable: Whether ``fix`` can be applied by the library.
        details: Numbers by name, of the worst place.
    """

    code: str
    slug: str
    severity: Severity
    message: str
    places: tuple[str, ...] = ("",)
    quantity: str = ""
    measured: float | None = None
    bound: float | None = None
    cost: str = ""
    fix: str = ""
    safe: bool = False
    fixable: bool = False
    details: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values; NaN and infinities, for which JSON has no numbers, as words."""
        document: dict[str, Any] = plain(self)
        return document
