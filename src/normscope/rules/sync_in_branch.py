"""Synchronised norms that not every process calls."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope import layers
from normscope.evidence import Case, Evidence, Finding, Severity, examples, look
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_BATCHES = 8


class _Branch(nn.Module):
    """A part of the network that runs only for some batches."""

    def __init__(self, norm: examples.Norm, *, by: str = "data") -> None:
        super().__init__()
        self.inlet = nn.Linear(12, 16)
        self.extra = nn.Sequential(nn.Linear(16, 16), norm(16), nn.ReLU())
        self.head = nn.Linear(16, 4)
        self.by, self.calls = by, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = torch.relu(self.inlet(x))
        if (self.by == "data" and x.mean() > 0.3) or (self.by == "turn" and self.calls % 2):
            h = h + self.extra(h)
        return self.head(h)


class _Experts(nn.Module):
    """Samples go to one of two branches; where none goes, the branch is not called."""

    def __init__(self, norm: examples.Norm) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        which = (x.mean((1, 2, 3)) > 1.15).long()
        out = x.new_zeros(len(x), 8)
        for index, expert in enumerate(self.experts):
            if int((which == index).sum()) > 0:
                out = out.index_add(0, torch.nonzero(which == index)[:, 0], expert(x[which == index]).mean((2, 3)))
        return self.head(out)


class _Refined(nn.Module):
    """A block is repeated until the output is sure enough."""

    def __init__(self, norm: examples.Norm) -> None:
        super().__init__()
        self.inlet, self.block = nn.Linear(12, 16), nn.Sequential(nn.Linear(16, 16), norm(16), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.inlet(x))
        for _ in range(1 + int(4 * abs(float(x[:, 0].mean())))):
            h = h + self.block(h)
        return self.head(h)


def _sync(width: int) -> nn.Module:
    return nn.SyncBatchNorm(width)


def _ours(width: int) -> nn.Module:
    return layers.BatchNorm1d(width, statistics="sync")


def _case(net: Any, shape: tuple[int, ...] = (12,), *, size: int = 8) -> Case:
    return examples.healthy(net, trained=0, size=size, shape=shape)


class SyncInBranch(AbstractRule):
    r"""A synchronised norm is called for some batches and not for others.

    ## Finds
    Norms whose statistics are synchronised over processes (``SyncBatchNorm``, or this library's with
    ``statistics="sync"``) are counted over forward passes of several training batches, each run twice in a row and
    once more after the others. Found are those whose number of calls differs between batches and is always the same
    for one batch: the data decide. What goes by turns or by chance may be the same in all processes, and is not named.

    Calibrated over six seeds: planted defects found, 22 of 24; false alarms on 46 healthy set-ups under eight
    seeds, 0 of 368. What was missed were runs in which the data never took the branch in the batches looked at.

    ## Why it hurts
    Every call waits for all processes. If one process's batch takes the branch and another's does not, the first waits
    for ever, or, worse, meets the next norm's call of the other and averages statistics of different layers. It shows
    as training that hangs after an hour.

    ## Fix
    None that is mechanical: call the norm in every process (on an empty or a dummy part, too), decide the branch
    together, or keep the norm in the branch unsynchronised.
    """

    CODE = "NS116"
    SLUG = "sync-in-branch"
    SEVERITY = Severity.ERROR
    SOURCES = ("pytorch/pytorch#44957", "NVIDIA/apex#105")
    SICK = (
        partial(_case, partial(_Branch, _sync)),
        partial(_case, partial(_Branch, _ours)),
        examples.Planted(partial(_case, partial(_Experts, _sync), (3, 8, 8), size=4), ["experts.1.1"]),
        partial(_case, partial(_Refined, _sync)),
    )
    WELL = (
        partial(_case, partial(_Branch, nn.BatchNorm1d)),
        partial(_case, partial(_Branch, _sync, by="turn")),
        partial(_case, partial(_Branch, _ours, by="never")),
        partial(examples.healthy, examples.mlp, norm=_sync),
    )
    NEAR = (examples.Near(lambda by: _case(partial(_Branch, _sync, by=by)), found="data", quiet="turn"),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Count the calls of synchronised norms batch by batch."""
        synchronised = {path: module for path, module in evidence.norms.items() if _waits(module)}
        if not synchronised:
            return
        logs = _logs(evidence, synchronised)
        found: dict[str, tuple[int, int]] = {}
        for path in synchronised:
            counts = {batch: {log[path] for log in several} for batch, several in logs.items()}
            decided = {next(iter(values)) for values in counts.values() if len(values) == 1}
            if len(decided) > 1 and all(len(values) == 1 for values in counts.values()):
                found[path] = min(decided), max(decided)
        if not found:
            return
        worst = max(found.values(), key=lambda pair: pair[1] - pair[0])
        yield self.finding(
            f"{counted(len(found), 'synchronised norm is', 'synchronised norms are')} called as the data decide: "
            f"{counted(worst[0], 'time')} for one batch, "
            f"{worst[1]} for another",
            list(found),
            quantity="difference between batches in the number of calls",
            measured=float(worst[1] - worst[0]),
            bound=0.0,
            cost="processes with different data wait for each other for ever, or mix statistics of different layers",
            fix="call these norms in every process for every batch, or do not synchronise them",
        )


def _waits(module: Any) -> bool:
    return module.training and (
        isinstance(module, nn.SyncBatchNorm) or getattr(module, "statistics", "batch") == "sync"
    )


def _logs(evidence: Evidence, norms: dict[str, Any]) -> dict[int, list[Counter[str]]]:
    """Return for each batch the calls of each run of it: twice in a row, and again after all the others."""
    logs: dict[int, list[Counter[str]]] = {}
    now: list[Counter[str]] = []

    def told(batch: int) -> None:
        now[:] = [Counter()]
        logs.setdefault(batch, []).append(now[0])

    def see(path: str, _x: Tensor, _arguments: Any) -> None:
        now[0][path] += 1

    count = min(_BATCHES, evidence.batches)
    look(evidence.case, norms, count, before=see, repeat=2, told=told)
    look(evidence.case, norms, count, before=see, told=told)
    return logs
