"""Where in the computation of a step a norm is called: its place. Calls of one place are alike, others need not be."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

#: Number of the pass of the whole model within the step, from 1, and of the norm's call within that pass, from 0. The
#: pass is 0 for calls before the first of the whole model, as where only parts of it are called.
Place = tuple[int, int]


class Places:
    """Counts the passes of a model in a step, and the calls of its norms in a pass."""

    def __init__(self) -> None:
        self._pass = 0
        self._calls: Counter[str] = Counter()

    def begin_step(self) -> None:
        """Begin with the first pass again."""
        self._pass = 0
        self._calls.clear()

    def begin_pass(self, *_: Any) -> None:
        """Count a pass of the whole model. What a hook is given is not looked at."""
        self._pass += 1
        self._calls.clear()

    def next(self, path: str) -> Place:
        """Return the place of a norm's call that begins now."""
        self._calls[path] += 1
        return self._pass, self._calls[path] - 1


def by_place(calls: Iterable[Any]) -> dict[Place, list[Any]]:
    """Return calls of a norm (``NormCall`` or ``Moments``) in groups of one place each."""
    groups: dict[Place, list[Any]] = {}
    for call in calls:
        groups.setdefault(call.place, []).append(call)
    return groups
