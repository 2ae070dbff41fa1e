"""What a verification found: a verdict for each argument."""

import math
from dataclasses import dataclass
from typing import Any

from normscope.records import notebook
from normscope.records.json import or_null, plain
from normscope.records.numbers import number


@dataclass(frozen=True, slots=True)
class Checked:
    """The verdict on the gradient of one argument.

    Attributes:
        name: The argument, as the forward function calls it.
        ok: Whether the formula is right; None where nothing was compared: the formula gives no gradient, or the
            argument is a constant.
        error: Distance of the formula's results to the true gradients, over the length of the true gradients, for all
            incoming gradients together; the largest over the inputs that were tried. NaN where the shapes do not fit,
            or nothing was compared.
        tolerance: Largest relative error that counts as rounding.
        where: Index of the entry with the largest error; None where the shapes do not fit, or nothing was compared.
        shape: Shape of the result; None where there is no result.
        expected: Shape of the argument.
        explanation: What is wrong, in a sentence, or why nothing was compared; empty where the formula is right.
        known: Whether the explanation accounts for the whole error, to rounding.
    """

    name: str
    ok: bool | None
    error: float = math.nan
    tolerance: float = math.nan
    where: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    expected: tuple[int, ...] = ()
    explanation: str = ""
    known: bool = True

    @property
    def word(self) -> str:
        """``"right"``, ``"wrong"`` or ``"not checked"``."""
        return "not checked" if self.ok is None else "right" if self.ok else "wrong"

    def __str__(self) -> str:
        """Return the verdict in a line."""
        return f"{self.name}: {self.word}{self._size()}{f': {self.explanation}' if self.explanation else ''}"

    def _size(self) -> str:
        """Return the size of the error in brackets, where there is one."""
        if math.isnan(self.error):
            return ""
        at = f", largest at {_index(self.where)}" if self.where and not self.ok else ""
        return f" (relative error {number(self.error)}{at})"


@dataclass(frozen=True, slots=True)
class Verification:
    """The verdict on a gradient formula; true where the formula is right.

    Attributes:
        checked: The verdict on each argument, in the order of the arguments.
        notes: Sentences on how the formula was tried.
        truth: Where the true gradients come from.
        seed: Seed of the incoming gradients and of the inputs beside those that were given.
    """

    checked: tuple[Checked, ...]
    notes: tuple[str, ...]
    truth: str
    seed: int

    @property
    def ok(self) -> bool:
        """Whether no gradient that was compared is wrong."""
        return all(each.ok is not False for each in self.checked)

    def __bool__(self) -> bool:
        return self.ok

    def __getitem__(self, name: str) -> Checked:
        """Return the verdict on an argument by its name.

        Raises:
            KeyError: There is no such argument.
        """
        for each in self.checked:
            if each.name == name:
                return each
        raise KeyError(name)

    def __str__(self) -> str:
        """Return the verdicts as text, a line each, and the notes."""
        return "\n".join([self._head(), *map(str, self.checked), *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        """Return the verdicts for a notebook."""
        rows = [("error" if each.ok is False else "", str(each)) for each in self.checked]
        rows = [(word and "wrong", text) for word, text in rows]
        notes = [notebook.items([("note", note) for note in self.notes])] if self.notes else []
        return notebook.card([notebook.head(self._head()), notebook.items(rows), *notes])

    def _head(self) -> str:
        compared = [each for each in self.checked if each.ok is not None]
        wrong, names = sum(each.ok is False for each in compared), _listed([each.name for each in compared])
        if wrong in (0, len(compared)):
            return f"The gradient is {'wrong' if wrong else 'right'} for {names}, compared with {self.truth}"
        verb = "is" if wrong == 1 else "are"
        return f"{wrong} of {len(compared)} gradients {verb} wrong, compared with {self.truth}"

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as values of JSON; a number that JSON lacks is None."""
        document = {"ok": self.ok, "checked": self.checked, "notes": self.notes, "truth": self.truth, "seed": self.seed}
        return plain(document, or_null)


def _index(where: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, where))}]"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
