"""How much the rules find and how often they are wrong, over the set-ups that they bring along."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from normscope import checking, rules
from normscope.modules.rng import torch_streams_kept
from normscope.records import provenance
from normscope.usercode import described

COLUMNS = ("rule", "sick", "found", "well", "quiet", "recall", "precision", "repaired", "beside", "ms")

_NOTES = """\
A set-up of a rule is *sick* if its defect was planted, *well* if it comes near and is right. *found* counts the sick
ones in which the rule finds something, *quiet* the well ones in which it finds nothing; recall is found over sick,
precision found over all in which it speaks. *repaired*: of the sick ones with a fix, those in which nothing that can
be fixed is left after it. *beside*: well set-ups of the other rules in which it speaks; that need not be wrong, as what
is well for one rule may be sick for another. *ms*: median time of a check by this rule alone on its sick set-ups.

These set-ups are small networks that the rules' authors made, and the bounds were chosen with them in view: the table
says that the rules do what they say, not how often they are right on networks of yours.
"""


def measure(select: Sequence[str] | None = None, *, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Run each rule on its own sick and well set-ups, and on the well ones of the others.

    Args:
        select: Codes, names or beginnings; all rules if None.
        progress: Called with what is being done, in words.

    Returns:
        ``rules``, a row a rule; ``failed``, what rules raised on set-ups of others; ``provenance``; ``seconds``.
    """
    told = progress or (lambda what: None)
    every, began = rules.chosen(select), time.perf_counter()
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    with torch_streams_kept():
        for rule in every:
            told(f"{rule.CODE} {rule.SLUG}")
            rows.append(_row(rule))
        spoken = _beside(every, told, lambda code, error: failed.append(f"{code}: {described(error)}"))
    for row in rows:
        row["beside"], row["beside_of"] = spoken[row["code"]]
    return {
        "rules": rows,
        "failed": sorted(set(failed)),
        "provenance": provenance.collect(),
        "seconds": time.perf_counter() - began,
    }


def _row(rule: rules.AbstractRule) -> dict[str, Any]:
    found = repaired = fixable = loud = 0
    times = []
    for make in rule.SICK:
        case = make()
        start = time.perf_counter()
        findings = checking.check(case, [rule.CODE], gap=False)
        times.append(1000 * (time.perf_counter() - start))
        found += bool(len(findings))
        if any(finding.fixable for finding in findings):
            fixable += 1
            checking.fix(case, findings, unsafe=True, measure=False)  # of fixes the rule is asked, not the loss
            left = checking.check(case, [rule.CODE], gap=False)
            repaired += not any(finding.fixable for finding in left)
    for make in rule.WELL:
        loud += bool(len(checking.check(make(), [rule.CODE], gap=False)))
    return {
        "code": rule.CODE,
        "slug": rule.SLUG,
        "sick": len(rule.SICK),
        "found": found,
        "well": len(rule.WELL),
        "quiet": len(rule.WELL) - loud,
        "recall": found / len(rule.SICK) if rule.SICK else None,
        "precision": found / (found + loud) if found + loud else None,
        "fixable": fixable,
        "repaired": repaired,
        "ms": sorted(times)[len(times) // 2] if times else None,
    }


def _beside(
    every: Sequence[rules.AbstractRule], told: Callable[[str], None], failure: Callable[[str, Exception], None]
) -> dict[str, tuple[int, int]]:
    """Return by code in how many well set-ups of other rules a rule speaks, and of how many."""
    spoken, of = dict.fromkeys((rule.CODE for rule in every), 0), dict.fromkeys((rule.CODE for rule in every), 0)
    for owner in every:
        told(f"well set-ups of {owner.CODE}")
        others = [rule.CODE for rule in every if rule is not owner]
        if not others:
            continue
        for make in owner.WELL:
            found = checking.check(make(), others, gap=False, on_failure=failure)
            codes = {finding.code for finding in found}
            for code in others:
                spoken[code] += code in codes
                of[code] += 1
    return {code: (spoken[code], of[code]) for code in spoken}


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table's rows, one a rule, and one for all."""
    found = [_cells(row) for row in result["rules"]]
    keys = ("sick", "found", "well", "quiet", "fixable", "repaired", "beside", "beside_of")
    total = {key: sum(row[key] for row in result["rules"]) for key in keys}
    spoken = total["found"] + total["well"] - total["quiet"]
    total |= {
        "code": "all",
        "slug": "",
        "recall": total["found"] / total["sick"] if total["sick"] else None,
        "precision": total["found"] / spoken if spoken else None,
        "ms": None,
    }
    return [*found, _cells(total)]


def text(result: dict[str, Any]) -> str:
    """Return the table for a terminal, columns aligned."""
    cells = [COLUMNS, *rows(result)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([*lines, "", _conditions(result)]) + "\n"


def markdown(result: dict[str, Any]) -> str:
    """Return the page."""
    table = [COLUMNS, ("---",) + ("---:",) * (len(COLUMNS) - 1), *rows(result)]
    lines = "".join("| " + " | ".join(row) + " |\n" for row in table)
    return f"# What the rules find, and how often they are wrong\n\n{_NOTES}\n{lines}\n{_conditions(result)}\n\n" + (
        "Made by `normscope bench check --out benchmarks/results/check.md`.\n"
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['code']} {row['slug']}".strip(),
        str(row["sick"]),
        str(row["found"]),
        str(row["well"]),
        str(row["quiet"]),
        _share(row["recall"]),
        _share(row["precision"]),
        f"{row['repaired']} of {row['fixable']}" if row["fixable"] else "no fix",
        f"{row['beside']} of {row['beside_of']}",
        "" if row["ms"] is None else f"{row['ms']:.0f}",
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _conditions(result: dict[str, Any]) -> str:
    made = result["provenance"]
    failed = "".join(f"\n\nCould not be judged on a set-up of another rule: {one}." for one in result["failed"])
    took = f"{result['seconds']:.0f} s in all."
    return f"{made['cpu']}, torch {made['versions']['torch']}, {made['utc'][:10]}; {took}{failed}"
