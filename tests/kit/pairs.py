"""Every pair of levels of every two factors, in few cases: what is wrong with a pair shows in one of them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Level = tuple[str, Any]


def all_pairs(
    factors: Mapping[str, Sequence[Any]], forbidden: Callable[[Level, Level], bool] = lambda a, b: False
) -> list[dict[str, Any]]:
    """Return cases that have, for every two factors, every two levels that go together.

    Args:
        factors: The levels of each factor; the first goes together with all levels of all others.
        forbidden: Whether two levels of two factors, each a pair of name and level, do not go together.

    Returns:
        Cases, each a level for every factor; the same at every call.
    """
    levels = {name: [(name, level) for level in values] for name, values in factors.items()}
    apart = {
        (a, b)
        for first, second in itertools.combinations(levels, 2)
        for a, b in itertools.product(levels[first], levels[second])
        if forbidden(a, b) or forbidden(b, a)
    }
    wanted = [
        (a, b)
        for first, second in itertools.combinations(levels, 2)
        for a, b in itertools.product(levels[first], levels[second])
        if (a, b) not in apart
    ]
    order = {name: at for at, name in enumerate(levels)}

    def pair(a: Level, b: Level) -> tuple[Level, Level]:
        return (a, b) if order[a[0]] < order[b[0]] else (b, a)

    missing = dict.fromkeys(wanted)
    cases = []
    while missing:
        case = dict(next(iter(missing)))
        for name in levels:
            if name in case:
                continue
            fits = [a for a in levels[name] if not any(pair(a, b) in apart for b in case.items())]
            case[name] = max(fits, key=lambda a: sum(pair(a, b) in missing for b in case.items()))[1]
        for a, b in itertools.combinations(sorted(case.items(), key=lambda level: order[level[0]]), 2):
            missing.pop((a, b), None)
        cases.append({name: case[name] for name in levels})
    return cases


def named(case: Mapping[str, Any], factors: Mapping[str, Sequence[Any]]) -> str:
    """Return a case in words: the levels that are not the first of their factor."""
    return ", ".join(f"{name}={case[name]}" for name in case if case[name] != factors[name][0]) or "plain"
