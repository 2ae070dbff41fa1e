"""Dropout that reaches a batch norm."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from normscope import layers
from normscope.evidence import Case, Evidence, Finding, Severity, examples, recalibrate_places
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_RATIO = (0.8, 1.25)


def _dropped(
    norm: examples.Norm = nn.BatchNorm1d, *, share: float = 0.5, depth: int = 2, after: bool = False
) -> nn.Module:
    """A dense network with dropout before each linear layer and norm, or only after the last norm."""
    parts: list[nn.Module] = []
    inputs = 12
    for _ in range(depth):
        parts += [nn.Identity() if after else nn.Dropout(share), nn.Linear(inputs, 24, bias=False), norm(24), nn.ReLU()]
        inputs = 24
    return nn.Sequential(*parts, nn.Dropout(share) if after else nn.Identity(), nn.Linear(24, 4))


def _dropped_maps(norm: examples.Norm = nn.BatchNorm2d, *, share: float = 0.7) -> nn.Module:
    """Dropout between convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        norm(8),
        nn.ReLU(),
        nn.Dropout(share),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        norm(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


class _DroppedSequence(nn.Module):
    """Dropout on a sequence, right before the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv1d(12, 10, 3, padding=1)
        self.dropout = nn.Dropout(0.4)
        self.norm = layers.BatchNorm1d(10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.dropout(self.inlet(x)))).mean(2))


def _dropped_values(share: float, *, clipped: bool = False) -> Case:
    """Values of 1 and -1 under dropout, which multiplies their variance by ``1 / (1 - share)``, or ``1 - share``.

    Args:
        share: Share of values that are dropped.
        clipped: Whether what is left is cut off at 1 and -1 again.
    """
    norm = examples.batch_norm(24, variance=1 - share if clipped else 1 / (1 - share))
    model = nn.Sequential(nn.Dropout(share), nn.Hardtanh() if clipped else nn.Identity(), norm).train()
    return Case(model, examples.mean_square, [examples.two_values(0.0, 1.0, 256, 24)] * 10)


class DropoutBeforeNorm(AbstractRule):
    r"""Dropout reaches a norm, whose running variance then fits training and not evaluation.

    ## Finds
    The variance of each norm's input is pooled over training batches twice, with dropout on and off; the median over
    channels of off to on lies outside 0.8 to 1.25, and in most channels that differ so the running variance is nearer
    to that with dropout on. Only networks with dropout, in train mode, are looked at.

    Calibrated over six seeds: planted defects found, 24 of 24; false alarms on 46 healthy set-ups under eight
    seeds, 0 of 368.

    ## Why it hurts
    Dropout keeps the mean and raises the second moment: with share p an input of mean $\mu$ and variance
    $v$ comes out with variance $(v + p\mu^2)/(1-p)$. Running statistics are taken with it and used without
    it: in evaluation every channel comes out too small, in every layer behind, and the loss in evaluation suffers for
    no reason of generalisation.

    ## Fix
    Unsafe: the running statistics are taken anew with dropout off, which repairs evaluation of these weights; it has to
    be done again after further training. For good: put dropout after the last norm.
    """

    CODE = "NS125"
    SLUG = "dropout-before-norm"
    SEVERITY = Severity.WARNING
    KEEPS = ("training",)
    SOURCES = (
        "Li et al. 2019, Understanding the Disharmony between Dropout and Batch Normalization (arXiv:1801.05134)",
    )
    SICK = (
        partial(examples.healthy, _dropped, shape=(12,)),
        partial(examples.healthy, _dropped, shape=(12,), depth=4),
        examples.Planted(partial(examples.healthy, _dropped_maps, shape=(3, 8, 8)), ["5"]),
        partial(examples.healthy, _DroppedSequence, shape=(12, 9)),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(examples.healthy, partial(_dropped, after=True), shape=(12,)),
        partial(examples.healthy, partial(_dropped, share=0.1), shape=(12,)),
        partial(examples.healthy, examples.cnn),
    )
    NEAR = (
        examples.Near(lambda ratio: _dropped_values(1 - ratio), found=0.76, quiet=0.84),
        examples.Near(lambda ratio: _dropped_values(1 - 1 / ratio, clipped=True), found=1.31, quiet=1.19),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Compare the variances with and without dropout."""
        drops = [
            module
            for module in evidence.modules.values()
            if isinstance(module, (_DropoutNd, nn.MultiheadAttention)) and module.training and _share(module) > 0
        ]
        if not drops or not evidence.updating:
            return
        off, on = evidence.statistics, evidence.statistics_with_dropout
        found: dict[str, float] = {}
        for path in evidence.updating:
            ratios = off.variance[path] / on.variance[path].clamp(min=1e-30)
            ratio = float(ratios.median())
            if not ratio > 0 or _RATIO[0] <= ratio <= _RATIO[1]:
                continue
            # Which of the two the running variance is of: only channels where they differ can tell.
            apart = (ratios < _RATIO[0]) | (ratios > _RATIO[1])
            of_on = on.ratio[path][apart].log().abs() < off.ratio[path][apart].log().abs()
            if float(of_on.double().mean()) > 0.5:
                found[path] = ratio
        if not found:
            return
        worst = max(found, key=lambda path: abs(math.log(found[path])))
        yield self.finding(
            f"dropout changes the variance that {counted(len(found), 'norm is', 'norms are')} given: without it, as "
            "in evaluation, it is "
            f"{found[worst]:.2g} times that of training",
            list(found),
            quantity="variance of the norm's input in evaluation over that in training, median over channels",
            measured=found[worst],
            bound=_RATIO[0] if found[worst] < 1 else _RATIO[1],
            cost=f"in evaluation the norm puts out {found[worst] ** 0.5:.2g} times the standard deviation it should",
            fix="put dropout after the last norm; for these weights take the statistics anew without it: "
            "normscope.surgery.recalibrate(model, loader)",
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Recalibrate the norms of the finding with dropout off."""
        done = recalibrate_places(case, finding, frozen=False)
        return f"recalibrated {counted(done, 'norm')} with dropout off: do so again after further training"


def _share(module: Any) -> float:
    return float(module.p if isinstance(module, _DropoutNd) else module.dropout)
