"""Repair findings one by one, and say of each what of it a state dict keeps and what none does."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from normscope import evidence
from normscope.checking import checkpoint
from normscope.checking.fixing import Fixer, in_order
from normscope.checking.judging import Failures
from normscope.checking.limit import TimeLimit
from normscope.modules.values import same_bits
from normscope.records import Finding
from normscope.records.numbers import counted
from normscope.report import FixNote

# An attribute of a module -> how its change is said; None where another one says it.
_WORDS = {"training": "the mode", "train": "the freeze", "extra_repr": None, "_before_freeze": None}
_PLAIN = (bool, int, float, str, type(None))
_ABSENT = object()


def repair(
    case: evidence.Case, findings: Iterable[Finding], *, unsafe: bool, timeout: float | None = None
) -> list[FixNote]:
    """Apply the fix of each finding to the case, in place, as ``fixing.fix`` does, and say what a file can keep of it.

    Args:
        case: The set-up.
        findings: What was found.
        unsafe: Whether fixes are applied that change what the network computes or how it trains.
        timeout: Seconds after which a fix is given up and taken back; without end if None.
    """
    notes, before = [], _Before(case)
    failures = Failures(lambda code, error: None)  # each is told in its note
    fixer = Fixer(case, TimeLimit(timeout), failures.note)
    for finding in in_order(findings):
        made = fixer.fix(finding, unsafe=unsafe)
        if not made.done:
            notes.append(FixNote(finding, why_not=made.why_not, losses=made.losses))
            continue
        tensors, beyond = before.changes()
        notes.append(FixNote(finding, made.done, "", tensors, beyond, made.losses))
        before = _Before(case)
    return notes


def save(case: evidence.Case, before: Mapping[str, Mapping[str, Tensor]], out: Path) -> tuple[list[str], list[str]]:
    """Write the state dict of each model whose state is not what it was.

    Args:
        case: The set-up, repaired.
        before: ``states(case)`` before the repair.
        out: The file for the model; averaged weights go into another beside it.

    Returns:
        Phrases of what was written where, and sentences about what was not.
    """
    saved, notes = [], []
    for label, model in _models(case):
        full = model.state_dict()
        tensors = {key: value for key, value in full.items() if isinstance(value, Tensor)}
        if not changed(before[label], tensors):
            continue
        path = out if label == "model" else out.with_name(f"{out.stem}.{label}{out.suffix}")
        checkpoint.write(tensors, path)
        saved.append(f"{path}: the state dict of the {label}, {counted(len(tensors), 'tensor')}")
        other = [key for key in full if key not in tensors]
        if other:
            notes.append(f"not saved, as it is no tensor: {', '.join(other)}")
    if not saved:
        notes.append(f"{out} was not written: no tensor of a state dict was changed")
    return saved, notes


def states(case: evidence.Case) -> dict[str, dict[str, Tensor]]:
    """Return a copy of the tensors of the state dict of each model."""
    return {
        label: {key: value.detach().clone() for key, value in model.state_dict().items() if isinstance(value, Tensor)}
        for label, model in _models(case)
    }


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> int:
    """Count the tensors that are new, gone, or of other bits."""
    both = before.keys() & after.keys()
    return len(before.keys() ^ after.keys()) + sum(not same_bits(before[key], after[key].detach()) for key in both)


class _Before:
    def __init__(self, case: evidence.Case) -> None:
        self._case = case
        self._states = states(case)
        self._settings = {label: _settings(model) for label, model in _models(case)}
        self._groups, self._loaders = _groups(case), (case.loader, case.eval_loader)

    def changes(self) -> tuple[int, tuple[str, ...]]:
        """Return how many tensors of state dicts changed, and what else did, in words."""
        case, beyond = self._case, list[str]()
        now = states(case)
        tensors = sum(changed(self._states[label], now[label]) for label in now)
        for label, model in _models(case):
            beyond += _differences(self._settings[label], _settings(model))
        if _groups(case) != self._groups:
            beyond.append("the optimizer's groups")
        if case.loader is not self._loaders[0] or case.eval_loader is not self._loaders[1]:
            beyond.append("the loader")
        return tensors, tuple(dict.fromkeys(beyond))


def _models(case: evidence.Case) -> list[tuple[str, Module]]:
    found = [("model", case.model)]
    return found if case.averaged is None else [*found, ("averaged", case.averaged)]


def _settings(model: Module) -> dict[str, tuple[type, dict[str, Any]]]:
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        values: dict[str, Any] = {
            key: value if isinstance(value, _PLAIN) else ... for key, value in vars(module).items()
        }
        values["requires_grad"] = tuple(p.requires_grad for p in module._parameters.values() if p is not None)
        found[path] = type(module), values
    return found


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    counts: dict[str, int] = {}
    for path in before.keys() | after.keys():
        old, new = before.get(path), after.get(path)
        if old is None or new is None or old[0] is not new[0]:
            counts["the class"] = counts.get("the class", 0) + 1
            continue
        for key in old[1].keys() | new[1].keys():
            if old[1].get(key, _ABSENT) != new[1].get(key, _ABSENT):
                word = _WORDS.get(key, key)
                if word is not None:
                    counts[word] = counts.get(word, 0) + 1
    return [f"{word} of {n} {'module' if n == 1 else 'modules'}" for word, n in sorted(counts.items())]


def _groups(case: evidence.Case) -> list[Any]:
    if case.optimizer is None:
        return []
    return [
        {key: value for key, value in group.items() if key != "params" and not isinstance(value, torch.Tensor)}
        | {"params": [id(parameter) for parameter in group["params"]]}
        for group in case.optimizer.param_groups
    ]
