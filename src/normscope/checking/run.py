"""From a user's words to all that a check has to say."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from normscope import checking, evidence, rules
from normscope._errors import UsageError
from normscope.checking import checkpoint, repair
from normscope.checking.limit import TimeLimit
from normscope.checking.settings import Settings as Settings
from normscope.checking.target import Target, open_target
from normscope.report import Checked, FixNote, GapNote, RuleNote
from normscope.usercode import users_code

Told = Callable[[str], None] | None


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for.

    Attributes:
        select: Codes, names or beginnings; all rules if None.
        ignore: Codes, names or beginnings that are left out.
        fix: Whether to apply safe fixes.
        unsafe: Whether to apply unsafe ones too.
        out: File for the repaired state dict.
        batches: Training batches over which statistics are taken.
        timeout: Seconds that a rule waits for one thing; without end if None.
        settings: Reasons for which findings are not reported.
    """

    select: Sequence[str] | None = None
    ignore: Sequence[str] | None = None
    fix: bool = False
    unsafe: bool = False
    out: Path | None = None
    batches: int = 10
    timeout: float | None = None
    settings: Settings = field(default_factory=Settings)


def check_target(words: str, options: Options, told: Told = None) -> Checked:
    """Check what a factory gives.

    Raises:
        UsageError: It gives nothing that can be checked, or something in it raises.
    """
    _some_rules(options)
    if options.out is not None:
        checkpoint.writable(options.out)
    target = open_target(words)
    began = time.perf_counter()
    if isinstance(target.made, Module):
        if options.fix:
            raise UsageError("fixes need data: have the factory return a Case with a loss and a loader")
        name = type(target.made).__name__
        note = f"{name} came without loss and data: only rules that read buffers ran; return an ns.Case for the others"
        with users_code("the state dict of the module"):
            state = target.made.state_dict()
        return _of_state(state, words, options, began, notes=(note,), file=target.file, line=target.line)
    return _of_case(target.made, words, target, options, told, began)


def check_file(path: Path, options: Options) -> Checked:
    """Check a checkpoint by the rules that read buffers alone.

    Raises:
        DataError: The file is missing, truncated, or no state dict.
        UsageError: It holds no batch norm, or code.
    """
    _some_rules(options)
    began = time.perf_counter()
    note = "a checkpoint shows buffers only: the other rules need the model and its data, and momentum is taken as 0.1"
    return _of_state(checkpoint.read(path), str(path), options, began, notes=(note,), file=str(path), line=0)


def _some_rules(options: Options) -> None:
    TimeLimit(options.timeout)  # says whether it is one
    if not rules.chosen(options.select, options.ignore):
        raise UsageError("no rule is left to run: what is selected is ignored, too")


def _of_state(
    state: Any, target: str, options: Options, began: float, *, notes: Sequence[str], file: str, line: int
) -> Checked:
    with users_code("the check"):
        found = checking.check_state(state, options.select, options.ignore, on_failure=_listed)
        found = options.settings.apply(found)
    if not found.rules:
        buffers = ", ".join(rule.CODE for rule in rules.all() if rule.BUFFERS_ONLY)
        raise UsageError(f"none of the rules asked for reads buffers alone: {buffers} do")
    return Checked(
        target,
        found.found,
        found.ignored,
        rules=_notes(found.rules),
        failed=found.unmeasured,
        notes=notes,
        file=file,
        line=line,
        seconds=time.perf_counter() - began,
        settings=options.settings.shown,
    )


def _of_case(case: evidence.Case, words: str, target: Target, options: Options, told: Told, began: float) -> Checked:
    failed: list[tuple[str, str]] = []
    with users_code("the check"):
        on_case = _notes_on(case)
    found = _check(case, options, told, failed)
    notes: list[str] = []
    fixes: list[FixNote] = []
    saved: list[str] = []
    if options.fix:
        with users_code("the state dict of the model"):
            before = repair.states(case)
        with users_code("a fix"):
            fixes = repair.repair(case, found, unsafe=options.unsafe, timeout=options.timeout)
        if any(fixed.done for fixed in fixes):
            failed.clear()
            found = _check(case, options, told, failed)
            still = "what is listed is what a second check, after the fixes, still found"
            notes.append(still if found.found else "a second check, after the fixes, found nothing more")
        if options.out is not None:
            saved, more = repair.save(case, before, options.out)
            notes += more
        notes += _what_is_left_to_do(fixes, options.out, saved)
    notes = [*on_case, *found.notes, *notes]  # after fixes, those of the second check
    if not any(code == "gap" for code, _ in failed):
        notes += _notes_on_gap(case, measured=found.gap is not None)
    gap = None
    if found.gap is not None:
        shares = tuple((share.cause, share.loss, share.explanation) for share in found.gap.shares)
        errors = tuple(share.error for share in found.gap.shares)
        gap = GapNote(found.gap.train, found.gap.eval, found.gap.batches, shares, errors)
    return Checked(
        words,
        found.found,
        found.ignored,
        _notes(found.rules),
        gap,
        failed,
        fixes,
        saved,
        notes,
        target.file,
        target.line,
        time.perf_counter() - began,
        options.settings.shown,
    )


def _check(case: evidence.Case, options: Options, told: Told, failed: list[tuple[str, str]]) -> checking.Findings:
    with users_code("the check"):
        found = checking.check(
            case,
            options.select,
            options.ignore,
            batches=options.batches,
            progress=told,
            on_failure=_listed,
            timeout=options.timeout,
        )
    failed += (*found.unmeasured, *found.not_run)
    return options.settings.apply(found, case.ignored)


def _listed(code: str, error: Exception) -> None:
    """Give no warning of a rule that failed: the output lists it."""


def _notes_on(case: evidence.Case) -> list[str]:
    norms = [module for module in case.model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return ["the model has no batch norm of torch's kinds: most rules have nothing to look at"]
    notes = []
    if not any(module.training for module in norms):
        notes.append("no norm is in train mode: if that is not how it trains, call model.train() in the factory")
    return notes


def _notes_on_gap(case: evidence.Case, *, measured: bool) -> list[str]:
    if case.eval_loader is not None and case.eval_loader is not case.loader:
        return []
    why = "without eval_loader" if case.eval_loader is None else "as eval_loader is the loader itself,"
    if measured:
        return [f"{why} both losses are of training batches: what other data change is not measured"]
    return [f"{why} the gap between training and evaluation is not measured"] if case.eval_loader is None else []


def _what_is_left_to_do(fixes: Sequence[FixNote], out: Path | None, saved: Sequence[str]) -> list[str]:
    done = [fixed for fixed in fixes if fixed.done]
    notes = []
    if any(fixed.tensors for fixed in done) and not saved and out is None:
        notes.append("the fixes were made on the objects of this process and end with it: --out FILE keeps the tensors")
    if any(fixed.beyond for fixed in done):
        notes.append(
            "settings are in no state dict: make those changes where the model is built, or call ns.fix(case, findings)"
        )
    return notes


def _notes(codes: Sequence[str]) -> list[RuleNote]:
    return [
        RuleNote(rule.CODE, rule.SLUG, rule.title(), rule.SEVERITY, rule.SAFE, tuple(rule.page().items()))
        for rule in rules.all()
        if rule.CODE in codes
    ]
