"""Check a training set-up by all rules."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, overload

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.checking.findings import Findings
from normscope.checking.judging import Judging, OnFailure
from normscope.checking.limit import OverTimeError, TimeLimit
from normscope.checking.notes import notes_on
from normscope.evidence.case import Case, LossFn
from normscope.evidence.evidence import Evidence
from normscope.evidence.gap import Gap
from normscope.evidence.sandbox import sandbox
from normscope.probes import ProbeWarning
from normscope.records import Finding
from normscope.rules import chosen

Progress = Callable[[str], None]


@overload
def check(
    case: Case,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    *,
    batches: int = 10,
    gap: bool = True,
    progress: Progress | None = None,
    on_failure: OnFailure | None = None,
    timeout: float | None = None,
) -> Findings: ...


@overload
def check(
    case: Module,
    loss_fn: LossFn,
    loader: Iterable[Any],
    optimizer: Optimizer | None = None,
    eval_loader: Iterable[Any] | None = None,
    *,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    batches: int = 10,
    gap: bool = True,
    progress: Progress | None = None,
    on_failure: OnFailure | None = None,
    timeout: float | None = None,
) -> Findings: ...


def check(case: Case | Module, *given: Any, **options: Any) -> Findings:
    """Look for defects of normalization in a training set-up.

    A few training steps are made and undone, statistics are pooled over some batches, and losses are taken in several
    modes; all rules share that. Afterwards everything is bit for bit as it was: parameters, buffers, gradients,
    optimizer, modes, hooks, random streams.

    Args:
        case: The set-up; or a model, followed by ``loss_fn``, ``loader`` and, if there are, ``optimizer`` and
            ``eval_loader``, as of ``Case``.
        *given: Of a case ``select`` and ``ignore``; of a model the rest of its set-up.
        **options: ``select``, codes, names or beginnings of codes, all rules if None; ``ignore``, those that are left
            out; ``batches``, over how many batches statistics are taken (10); ``gap``, whether to take the gap between
            training and evaluation apart, where there are evaluation data; ``progress``, called with what is being
            done, in words; ``timeout``, seconds that a rule waits for one thing, a measurement or its own passes (no
            limit): what it can interrupt is said in ``normscope.checking.limit``; ``on_failure``, called with the
            code of a rule that raised what no rule should (``"gap"``: the gap), and that: left out, a ``RuleWarning``
            names it.

    Returns:
        The findings, worst first; what is ignored on purpose apart. No rule keeps the others from being judged: what
        is raised in one is told in ``unmeasured``, and a rule that has waited too long in ``not_run``.

    Raises:
        UsageError: A code fits no rule, or the training raises in its first step, or a loader gives no batch.

    Example:
        >>> print(check(model, loss_fn, loader, optimizer, eval_loader))
        >>> [finding.code for finding in check(Case(model, loss_fn, loader, optimizer, eval_loader), ["NS1"])]
    """
    if isinstance(case, Case):
        return _check(case, *given, **options)
    set_up = {name: options.pop(name) for name in ("loss_fn", "loader", "optimizer", "eval_loader") if name in options}
    if len(given) + len(set_up) < 2:
        raise UsageError("give an ns.Case, or a model with its loss_fn and loader: ns.check(model, loss_fn, loader)")
    return _check(Case(case, *given, **set_up), **options)


def _check(
    case: Case,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    *,
    batches: int = 10,
    gap: bool = True,
    progress: Progress | None = None,
    on_failure: OnFailure | None = None,
    timeout: float | None = None,
) -> Findings:
    rules = chosen(select, ignore)
    if batches < 1:
        raise UsageError(f"batches={batches} must be 1 or more")
    told = progress or (lambda what: None)
    limit = TimeLimit(timeout, told)
    evidence = Evidence(case, batches=batches, told=limit)
    judging = Judging(limit, on_failure, basis=lambda: evidence.training)
    found: list[Finding] = []
    ignored: list[tuple[Finding, str]] = []
    with sandbox(case), warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbeWarning)  # a probe that cannot read this model leaves its rules silent
        with suppress(OverTimeError), limit.waiting("training steps"):  # rules that need them are told so
            evidence.take_modes()
        for rule in rules:
            told(f"{rule.CODE} {rule.SLUG}")
            for finding in judging.findings(rule.CODE, partial(rule.examine, evidence)):
                reason = case.ignored(finding.code, finding.places)
                if reason:
                    ignored.append((finding, reason))
                else:
                    found.append(finding)
        if gap and case.eval_loader is not None:
            judging.findings("gap", lambda: _gap_alone(evidence))
        taken = vars(evidence).get("gap")
        notes = notes_on(evidence)
    judging.warn()
    found.sort(key=lambda finding: (finding.severity.rank, finding.code))
    waited = dict(judging.not_run)
    return Findings(
        tuple(found),
        tuple(ignored),
        None if _broken(taken) else taken,
        tuple(rule.CODE for rule in rules if rule.CODE not in waited),
        tuple(judging.unmeasured),
        tuple(judging.not_run),
        (*notes, *_broken(taken)),
    )


def _broken(taken: Gap | None) -> list[str]:
    """Say that a loss is no number: steps of such a gap would be said to cost one."""
    return [taken.not_finite] if taken is not None and taken.not_finite else []


def _gap_alone(evidence: Evidence) -> list[Finding]:
    _ = evidence.gap
    return []


def check_state(
    state: Mapping[str, Any],
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    *,
    on_failure: OnFailure | None = None,
) -> Findings:
    """Look for the defects that a checkpoint's buffers show.

    Args:
        state: A state dict, possibly of several models, nested in mappings.
        select: As in ``check``.
        ignore: As in ``check``.
        on_failure: As in ``check``.

    Raises:
        UsageError: It holds no running statistics.
    """
    norms = _norms_of(state)
    if not norms:
        raise UsageError("the state dict holds no running_mean or running_var: there is no batch norm in it to check")
    tensors = ((path, tensor) for path, kept in norms.items() for tensor in kept.values())
    away = next((path for path, tensor in tensors if tensor.device.type == "meta"), None)
    if away is not None:
        raise UsageError(f"{away} lies on the meta device and has no value: materialise the model first")
    rules = [rule for rule in chosen(select, ignore) if rule.BUFFERS_ONLY]
    judging, found = Judging(TimeLimit(None), on_failure), list[Finding]()
    for rule in rules:
        found += judging.findings(rule.CODE, partial(rule.examine_buffers, norms))
    judging.warn()
    found.sort(key=lambda finding: (finding.severity.rank, finding.code))
    return Findings(tuple(found), rules=tuple(rule.CODE for rule in rules), unmeasured=tuple(judging.unmeasured))


def _norms_of(state: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _norms_of(value, f"{name}.")
        elif isinstance(value, Tensor):
            path, _, kind = name.rpartition(".")
            found.setdefault(path, {})[kind] = value
    return {path: tensors for path, tensors in found.items() if "running_mean" in tensors or "running_var" in tensors}
