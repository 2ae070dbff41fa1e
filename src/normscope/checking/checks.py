"""Check a training set-up by all rules, and repair what was found."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from normscope._errors import NonFiniteError, NormscopeError, UsageError
from normscope.evidence.case import Case
from normscope.evidence.evidence import Evidence
from normscope.evidence.gap import Gap
from normscope.evidence.repairs import RefusedFixError
from normscope.evidence.sandbox import NoBatchError, sandbox
from normscope.probes import ProbeWarning
from normscope.records import Finding, Severity, notebook
from normscope.records.numbers import counted
from normscope.rules import chosen, get


@dataclass(frozen=True)
class Findings(Sequence[Finding]):
    """What a check found, worst first.

    Attributes:
        found: The findings.
        ignored: Findings that the case or a module says are on purpose, with the reason.
        gap: Where the loss of evaluation comes from; None where it was not measured.
        rules: Codes of the rules that ran.
        unmeasured: Codes of rules (``"gap"``: the gap) whose evidence could not be had, and why: values that are not
            finite, or a pass that raises though the training runs.
        not_run: Codes of rules that were asked for and not run, and why: only where a scope runs them.
    """

    found: tuple[Finding, ...]
    ignored: tuple[tuple[Finding, str], ...] = ()
    gap: Gap | None = None
    rules: tuple[str, ...] = ()
    unmeasured: tuple[tuple[str, str], ...] = ()
    not_run: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: Any) -> Any:
        return self.found[index]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found)

    def _repr_html_(self) -> str:
        """Return the findings for a notebook, and what was not judged and why."""
        found = f"{counted(len(self.found), 'finding')} of {counted(len(self.rules), 'rule')}"
        parts = [notebook.paragraph(f"<b>{found}</b>")]
        if self.found:
            rows = [(each.severity.value, f"{each.code} {each.message} {_places(each)}") for each in self.found]
            parts.append(notebook.items(rows))
        left = [("not judged", f"{code}: {why}") for code, why in (*self.unmeasured, *self.not_run)]
        left += [("ignored", f"{each.code} {_places(each)}: {reason}") for each, reason in self.ignored]
        return notebook.card([*parts, notebook.items(left)] if left else parts)

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding; None if there is none."""
        return min((finding.severity for finding in self.found), key=lambda severity: severity.rank, default=None)


@dataclass(frozen=True, slots=True)
class Fixed:
    """What became of one finding.

    Attributes:
        finding: The finding.
        done: What was done; empty if nothing was.
        why_not: Why nothing was done.
    """

    finding: Finding
    done: str = ""
    why_not: str = ""


def check(
    case: Case,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    *,
    batches: int = 10,
    gap: bool = True,
    progress: Callable[[str], None] | None = None,
    on_failure: Callable[[str, Exception], None] | None = None,
) -> Findings:
    """Look for defects of normalization in a training set-up.

    A few training steps are made and undone, statistics are pooled over some batches, and losses are taken in several
    modes; all rules share that. Afterwards everything is bit for bit as it was: parameters, buffers, gradients,
    optimizer, modes, hooks, random streams.

    Args:
        case: The set-up.
        select: Codes, names or beginnings of codes; all rules if None.
        ignore: Codes, names or beginnings of codes that are left out.
        batches: Over how many batches statistics are taken.
        gap: Whether to take the gap between training and evaluation apart, where the case has evaluation data.
        progress: Called with what is being done, in words.
        on_failure: Called with the code of a rule that could not be judged (``"gap"``: the gap), and what it raised;
            the others are judged. Left out, it is raised. What the case's own code raises in a pass of one rule is
            told in ``unmeasured``, if the training itself runs.

    Returns:
        The findings, worst first; what is ignored on purpose apart.

    Raises:
        UsageError: A code fits no rule, or the training raises in its first step, or a loader gives no batch.

    Example:
        >>> findings = check(Case(model, loss_fn, loader, optimizer, eval_loader))
        >>> [finding.code for finding in findings]
    """
    rules = chosen(select, ignore)
    if batches < 1:
        raise UsageError(f"batches={batches} must be 1 or more")
    told = progress or (lambda what: None)
    evidence = Evidence(case, batches=batches, told=told)
    found: list[Finding] = []
    ignored: list[tuple[Finding, str]] = []
    unmeasured: list[tuple[str, str]] = []
    with sandbox(case), warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbeWarning)  # a probe that cannot read this model leaves its rules silent
        for rule in rules:
            told(f"{rule.CODE} {rule.SLUG}")
            for finding in _judged(rule.CODE, partial(rule.examine, evidence), on_failure, unmeasured, evidence):
                reason = case.ignored(finding.code, finding.places)
                if reason:
                    ignored.append((finding, reason))
                else:
                    found.append(finding)
        if gap and case.eval_loader is not None:
            _judged("gap", lambda: _gap_alone(evidence), on_failure, unmeasured, evidence)
        taken = vars(evidence).get("gap")
    found.sort(key=lambda finding: (finding.severity.rank, finding.code))
    return Findings(tuple(found), tuple(ignored), taken, tuple(rule.CODE for rule in rules), tuple(unmeasured))


def _gap_alone(evidence: Evidence) -> list[Finding]:
    _ = evidence.gap
    return []


def _judged(
    code: str,
    look: Callable[[], Iterable[Finding]],
    on_failure: Callable[[str, Exception], None] | None,
    unmeasured: list[tuple[str, str]],
    evidence: Evidence | None = None,
) -> list[Finding]:
    try:
        return list(look())
    except NonFiniteError as error:  # a finding of NS103's: the others cannot measure, and it must be heard
        unmeasured.append((code, str(error)))
        return []
    except NormscopeError as error:
        if evidence is None or isinstance(error, NoBatchError):
            raise
        _ = evidence.training  # raises where the set-up itself does not run: then there is nothing to judge
        unmeasured.append((code, str(error)))
        return []
    except Exception as error:
        if on_failure is None:
            raise
        on_failure(code, error)
        return []


def check_state(
    state: Mapping[str, Any],
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    *,
    on_failure: Callable[[str, Exception], None] | None = None,
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
    unmeasured: list[tuple[str, str]] = []
    found = []
    for rule in rules:
        found += _judged(rule.CODE, partial(rule.examine_buffers, norms), on_failure, unmeasured)
    found.sort(key=lambda finding: (finding.severity.rank, finding.code))
    return Findings(tuple(found), rules=tuple(rule.CODE for rule in rules), unmeasured=tuple(unmeasured))


def fix(case: Case, findings: Iterable[Finding], *, unsafe: bool = False) -> list[Fixed]:
    """Repair what was found, in place.

    Args:
        case: The set-up that was checked.
        findings: What to repair.
        unsafe: Whether to make fixes that change what the network computes or how it trains.

    Returns:
        For each finding what was done, or why nothing was.
    """
    made = []
    for finding in findings:
        rule = get(finding.code)
        if not finding.fixable:
            made.append(Fixed(finding, why_not=f"no mechanical fix: {finding.fix or 'see its page'}"))
        elif not (rule.SAFE or unsafe):
            made.append(Fixed(finding, why_not="the fix is unsafe: it changes what the network computes or learns"))
        else:
            try:
                made.append(Fixed(finding, done=rule.repair(case, finding)))
            except RefusedFixError as refusal:
                made.append(Fixed(finding, why_not=str(refusal)))
    return made


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


def _places(finding: Finding) -> str:
    """Return where a finding shows, in brackets; nothing for the whole model."""
    named = [f"`{place}`" for place in finding.places[:4] if place]
    more = f" and {len(finding.places) - 4} more" if len(finding.places) > 4 else ""
    return f"({', '.join(named)}{more})" if named else ""
