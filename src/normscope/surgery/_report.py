"""What a surgery did and what it left alone, and why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch.nn import Module


@dataclass(frozen=True, slots=True)
class Change:
    """Something done at one place of the model.

    Attributes:
        path: Qualified name of the module; ``""`` for the model itself.
        what: What was done, in a few words.
        detail: What a reader should know of it: what was kept, lost or taken instead.
        numbers: What was measured, by name: the proof of a fold, the shift of a statistic.
    """

    path: str
    what: str
    detail: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in self.numbers.items())
        return ": ".join(filter(None, (self.path or "(model)", self.what))) + "".join(
            f"; {part}" for part in (self.detail, numbers) if part
        )


@dataclass(frozen=True, slots=True)
class Skip:
    """Something left as it was.

    Attributes:
        path: Qualified name of the module.
        why: The reason, and what to do about it where something can be done.
    """

    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.path or '(model)'}: {self.why}"


@dataclass(frozen=True, slots=True)
class Report:
    """The model, what was done to it, and what was not.

    Attributes:
        model: The model that was given, changed in place.
        done: The changes, in the order of the model's modules.
        skipped: What could have been meant and was left alone.
        notes: What concerns the whole model.
    """

    model: Module
    done: tuple[Change, ...]
    skipped: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Change]:
        return iter(self.done)

    def __getitem__(self, path: str) -> Change:
        """Return the change at ``path``.

        Raises:
            KeyError: Nothing was done there; the reason is in the message if one is known.
        """
        for change in self.done:
            if change.path == path:
                return change
        why = next((skip.why for skip in self.skipped if skip.path == path), "no such place")
        raise KeyError(f"{path}: not changed: {why}")

    def __str__(self) -> str:
        lines = [f"{len(self.done)} done, {len(self.skipped)} skipped"]
        lines += [f"  done    {change}" for change in self.done]
        lines += [f"  skipped {skip}" for skip in self.skipped]
        lines += [f"  note    {note}" for note in self.notes]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Report: {len(self.done)} done, {len(self.skipped)} skipped>"
