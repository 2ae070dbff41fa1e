"""The section of ``results/check.md`` on networks that the rules were not made on."""

import platform
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from .kit import HEALTHY, PLANTED, SetUp
from .measure import harmful, persistent

Row = dict[str, Any]
PAGE = Path(__file__).parents[1] / "results" / "check.md"
START = "<!-- check_zoo: written by `python -m benchmarks.check_zoo`; what stands to the end mark is replaced -->"
END = "<!-- check_zoo: end -->"
LOUD = ("error", "warning")
BEFORE = [
    "Before the rules NS129 to NS138, and before any rule was mended with these findings in view, 82 of 89 healthy",
    "set-ups were without a wrong error or warning, 37 of 67 defects were found, and precision was .71: later figures",
    "are not of networks that nobody had seen.",
    "",
    "Another author then wrote 146 set-ups that are not kept here, 72 healthy and 74 with a defect, and checked each:",
    "precision was .83 (12 of 71 errors and warnings were wrong) and recall .82 (56 of 68 that did harm); no check",
    "raised or left a trace, and no fix that stood did harm. Of these findings three wrong ones are mended since.",
]


def told(set_up: SetUp, row: Row) -> list[str]:
    """Return what was measured of one set-up, for the terminal."""
    right = f", planted: {', '.join(sorted(set_up.right))}" if set_up.right else ""
    stale = "" if row["stale"] is None else f", stale statistics cost {row['stale']:.4f}"
    lines = [f"{row['name']}: {row['seconds']:.1f} s{stale}{right}"]
    if "abort" in row:
        lines.append(f"  ABORT {row['abort']}")
    if row["trace"]:
        lines.append(f"  TRACE {', '.join(row['trace'])}")
    lines += [
        f"  {judged(set_up, each)}: {words(each)} | {each['cost']} | fix: {each['fix']}" for each in row["findings"]
    ]
    lines += [f"  not judged: {code}: {why}" for code, why in row["unmeasured"]]
    if row["gap"]:
        lines.append("  gap: " + ", ".join(f"{cause} {loss:+.4f}" for cause, loss in row["gap"].items()))
    return lines + [f"  {repair(fix)}" for fix in row["fixes"]]


def judged(set_up: SetUp, finding: Row) -> str:
    """Return whether a finding is the planted one, true all the same, an information, or wrong."""
    if finding["code"] in set_up.right:
        return "planted"
    if finding["code"] in set_up.true:
        return "true"
    return "wrong" if finding["severity"] in LOUD else "information"


def words(finding: Row) -> str:
    """Return a finding as it is printed."""
    places = [f"`{place}`" for place in finding["places"][:3] if place]
    more = f" and {len(finding['places']) - 3} more" if len(finding["places"]) > 3 else ""
    return f"{finding['severity']} {finding['code']} {finding['message']}" + (
        f" ({', '.join(places)}{more})" if places else ""
    )


def repair(fix: Row) -> str:
    """Return what a fix did."""
    if "abort" in fix:
        return f"fix of {fix['code']} ABORT {fix['abort']}"
    if not fix.get("done"):
        return f"fix of {fix['code']}: not made: {fix['why_not']}"
    word = "STAYS WORSE" if persistent(fix) else "WORSE AT ONCE" if harmful(fix) else "fine"
    if "at_once" not in fix:
        return f"fix of {fix['code']}: {fix['done']}"
    (change, error, before), later = fix["at_once"], fix.get("later", [float("nan")] * 3)
    return (
        f"fix of {fix['code']} {word}: {fix['done']}: loss {before:.4f} {change:+.4f} (se {error:.4f}), "
        f"after 20 steps {later[0]:+.4f} (se {later[1]:.4f})"
    )


def write(rows: dict[str, Row], seeds: dict[str, dict[str, Row]], speed: dict[str, float], day: str) -> None:
    """Replace the section between the marks, or add it."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    section = "\n".join(_section(rows, seeds, speed, day))
    PAGE.write_text(f"{head.rstrip()}\n\n{START}\n{section}\n{END}\n{tail.lstrip()}", encoding="utf-8")


def clean(rows: dict[str, Row]) -> int:
    """Return of how many healthy set-ups no error or warning is wrong."""
    return sum(
        not any(judged(HEALTHY[name], each) == "wrong" for each in row["findings"]) for name, row in rows.items()
    )


def numbers(rows: dict[str, Row]) -> dict[str, Any]:
    """Return the figures of the page."""
    verdicts: Counter[str] = Counter()
    wrong: list[tuple[str, Row]] = []
    for name, row in rows.items():
        set_up = HEALTHY.get(name) or PLANTED[name]
        for finding in row["findings"]:
            if finding["severity"] in LOUD:
                word = judged(set_up, finding)
                verdicts[word] += 1
                if word == "wrong":
                    wrong.append((name, finding))
    found = {name: {f["code"] for f in rows[name]["findings"]} & PLANTED[name].right for name in PLANTED}
    fixes = [(name, fix) for name, row in rows.items() for fix in row["fixes"]]
    return {
        "verdicts": verdicts,
        "wrong": wrong,
        "clean": clean({name: rows[name] for name in HEALTHY}),
        "found": found,
        "recall": sum(bool(codes) for codes in found.values()),
        "aborts": [(name, row["abort"]) for name, row in rows.items() if "abort" in row],
        "traces": [(name, row["trace"]) for name, row in rows.items() if row["trace"]],
        "fixes": fixes,
        "harmful": [(name, fix) for name, fix in fixes if harmful(fix) or "abort" in fix],
        "unmeasured": Counter((code, why) for row in rows.values() for code, why in row["unmeasured"]),
        "seconds": sorted(row["cpu"] for row in rows.values()),
    }


def _section(rows: dict[str, Row], seeds: dict[str, dict[str, Row]], speed: dict[str, float], day: str) -> list[str]:
    all_of = numbers(rows)
    verdicts, seconds = all_of["verdicts"], all_of["seconds"]
    spoken = sum(verdicts.values())
    made = [fix for _, fix in all_of["fixes"] if fix.get("done")]
    worse = f"{sum(map(harmful, made))}, {sum(map(persistent, made))}"
    return [
        "## Networks that the rules were not made on",
        "",
        textwrap.fill(
            f"{len(HEALTHY)} healthy set-ups in the style of public code, and {len(PLANTED)} defects as users make "
            "them, planted into the same networks by an author who had not read the rules (`benchmarks/check_zoo`). A "
            "finding is *right* if it names the planted defect (by any of the codes listed), *true* if it was not "
            "planted and holds (the set-up says why), else *wrong*; informations are not counted. A fix is *worse at "
            "once* if the loss of evaluation rises by more than three standard errors over batches, .01 and 2 %; it "
            "*stays worse* if the loss is still higher after 20 further training steps of the repaired set-up and of "
            "the other.",
            120,
        ),
        "",
        *BEFORE,
        "",
        "| | |",
        "| --- | ---: |",
        f"| healthy set-ups without a wrong error or warning | {all_of['clean']} of {len(HEALTHY)} |",
        *[f"| the same with seed {seed} | {clean(part)} of {len(part)} |" for seed, part in seeds.items()],
        f"| planted defects found | {all_of['recall']} of {len(PLANTED)} |",
        f"| errors and warnings in all | {spoken} |",
        f"| of these right, true, wrong | {verdicts['planted']}, {verdicts['true']}, {verdicts['wrong']} |",
        f"| precision | {(spoken - verdicts['wrong']) / max(spoken, 1):.2f} |",
        f"| recall | {all_of['recall'] / len(PLANTED):.2f} |",
        f"| checks that raised | {len(all_of['aborts'])} of {len(rows)} |",
        f"| checks that left a trace | {len(all_of['traces'])} of {len(rows)} |",
        f"| fixes made | {len(made)} |",
        f"| worse at once, of these still worse after 20 steps | {worse} |",
        f"| fixes after which the set-up raises | {sum('abort' in fix for _, fix in all_of['fixes'])} |",
        f"| processor's seconds of a check, median and longest | {seconds[len(seconds) // 2]:.1f}, {seconds[-1]:.1f} |",
        f"| ResNet-18 at 32x32, 10 batches of 64, one thread: seconds of the clock | {speed['wall']:.1f} |",
        f"| the same, seconds of the processor | {speed['cpu']:.1f} |",
        f"| ten training steps of it, seconds of the processor | {speed['epoch']:.1f} |",
        "",
        *_table("Wrong findings", ["set-up", "what was said"], [[n, words(f)] for n, f in all_of["wrong"]]),
        *_table("Planted defects", ["defect", "right", "found"], [
            [f"{n}: {PLANTED[n].says}", ", ".join(sorted(PLANTED[n].right)), ", ".join(sorted(codes)) or "**missed**"]
            for n, codes in all_of["found"].items()
        ]),
        *_table("Checks that raised", ["set-up", "what"], [list(each) for each in all_of["aborts"]]),
        *_table("Traces", ["set-up", "what changed"], [[n, ", ".join(each)] for n, each in all_of["traces"]]),
        *_table("Fixes that are worse", ["set-up", "fix"], [[n, repair(fix)] for n, fix in all_of["harmful"]]),
        *_table("Not judged", ["rule", "reason", "set-ups"], [
            [code, why, str(count)] for (code, why), count in all_of["unmeasured"].most_common()
        ]),
        *_table("Healthy set-ups", ["set-up", "s"], [
            [f"{name}: {HEALTHY[name].says}", f"{rows[name]['cpu']:.1f}"] for name in HEALTHY
        ]),
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {day}.",
    ]  # fmt: skip


def _table(title: str, heads: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return [f"### {title}", "", "None.", ""]
    cells = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return [
        f"### {title}", "", f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |",
        *[f"| {row} |" for row in cells], "",
    ]  # fmt: skip
