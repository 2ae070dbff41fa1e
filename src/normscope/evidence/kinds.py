"""Calls of a norm in training steps, sorted into kinds of data that are compared: of a pass, an update, a step."""

from collections.abc import Callable, Iterable
from typing import Any

from normscope.evidence.listening import NormCall

#: Of each family that is compared within itself the kinds, and of each kind its calls.
Families = list[list[list[NormCall]]]


def kinds_of_pass(calls: Iterable[NormCall]) -> Families:
    """Return as kinds the calls of one norm within a pass of the whole model: levels, time steps, repeated blocks."""
    whole = (call for call in calls if call.place[0])
    return _families(whole, lambda call: call.place[0], lambda call: call.place[1])


def kinds_of_update(calls: Iterable[NormCall]) -> Families:
    """Return as kinds the passes whose gradients make up one update; the first calls are compared, the second, ...

    Where the whole model is not called, nothing tells passes apart, and each call is a kind.
    """
    calls = list(calls)
    first = {call.update: call.step for call in reversed(calls)}

    def kind(call: NormCall) -> Any:
        return call.step - first[call.update], call.place if not call.place[0] else call.place[0]

    several = [call for call in calls if call.update in _with_several(calls, kind)]
    return _families(several, lambda call: call.place[1] if call.place[0] else 0, kind)


def kinds_of_step(calls: Iterable[NormCall]) -> Families:
    """Return as kinds the updates that one step makes; the first calls before each are compared, the second, ..."""
    calls = list(calls)
    first = {call.step: call.update for call in reversed(calls)}
    counts: dict[tuple[int, int], int] = {}
    number = {}
    for call in calls:
        counts[call.step, call.update] = counts.get((call.step, call.update), 0) + 1
        number[call.order] = counts[call.step, call.update]
    return _families(calls, lambda call: number[call.order], lambda call: call.update - first[call.step])


def _with_several(calls: Iterable[NormCall], kind: Callable[[NormCall], Any]) -> set[int]:
    kinds: dict[int, set[Any]] = {}
    for call in calls:
        kinds.setdefault(call.update, set()).add(kind(call))
    return {update for update, found in kinds.items() if len(found) > 1}


def _families(
    calls: Iterable[NormCall], family: Callable[[NormCall], Any], kind: Callable[[NormCall], Any]
) -> Families:
    found: dict[Any, dict[Any, list[NormCall]]] = {}
    for call in calls:
        found.setdefault(family(call), {}).setdefault(kind(call), []).append(call)
    return [list(kinds.values()) for kinds in found.values() if len(kinds) > 1]
