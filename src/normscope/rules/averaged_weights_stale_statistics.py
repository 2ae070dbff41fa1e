"""Averaged weights with the statistics of others."""

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from normscope.evidence import (
    Case,
    Evidence,
    Finding,
    Gain,
    Severity,
    examples,
    gain_by_recalibration,
    sandbox,
    tracking,
)
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule
from normscope.surgery import recalibrate

_NEAR = 1e-3
_FIX = "recalibrate the averaged model: normscope.surgery.recalibrate(averaged, loader)"


def _averaged(net: Any, how: str) -> Case:
    case = examples.healthy(net)
    shadow = copy.deepcopy(case.model)
    other = examples.healthy(net, trained=20).model
    with torch.no_grad():
        for mine, theirs in zip(shadow.parameters(), other.parameters(), strict=True):
            mine.lerp_(theirs, 0.3)
        for norm in examples.norms(shadow):
            if how == "initial":
                norm.reset_running_stats()
            elif how == "half initial":
                norm.running_mean.mul_(0.5)
                norm.running_var.mul_(0.25).add_(0.5)
    case.averaged = shadow
    if how == "recalibrated":
        recalibrate(shadow, case.loader, examples.loss_fn)
    return case


def _moved(distance: float) -> Case:
    """Averaged weights that move the mean of the norm's input by so many standard deviations."""
    linear = nn.Linear(12, 12)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    pooled = 4.0 * 320 / 319  # of ten batches of 32
    model = nn.Sequential(linear, examples.batch_norm(variance=pooled)).train()
    averaged: Any = copy.deepcopy(model)
    nn.init.constant_(averaged[0].bias, distance * 2.0)
    return Case(model, examples.mean_square, [examples.two_values(0.0, 2.0)] * 10, averaged=averaged)


def _halved(constant: float, share: float = 1.0) -> Case:
    """An average with half of the variance of the data, where all batches but one have a share of that one's.

    Its loss is 2 where it would be 1, and a constant.
    """
    pooled = 4.0 * (1 + 9 * share) / 10 * 320 / 319
    model = nn.Sequential(examples.batch_norm(variance=pooled)).train()
    averaged: Any = copy.deepcopy(model)
    averaged[0].running_var.div_(2)

    def loss_fn(model: Any, batch: Any) -> Any:
        return examples.mean_square(model, batch) + constant

    loader = [examples.two_values(0.0, 2.0), *[examples.two_values(0.0, 2.0 * share**0.5)] * 9]
    return Case(model, loss_fn, loader, averaged=averaged)


class AveragedWeightsStaleStatistics(AbstractRule):
    r"""Averaged weights are evaluated with the running statistics of other weights.

    ## Finds
    Parameters of the averaged model (EMA, SWA) differ from the trained one's, but its running statistics equal the
    trained model's, or are still those of a new layer (mean 0, variance 1); and the statistics of the data at the
    averaged weights are others. It is an information where the loss of the averaged model falls by less than 1 %, or
    less than its noise over batches, with statistics taken anew. Statistics that are something else, as averages of
    buffers that still hold old values are, or those of long ago under parameters that are copied, are found by what
    they cost: the loss of the averaged model in eval mode over training batches falls to less than 1/1.2 with
    statistics taken anew, by more than three standard errors of the fall over batches, and 1.2 times as far as the loss
    of the model itself would.

    Calibrated over four seeds of six networks: such defects found, 47 of 48; false alarms on 48 averages of parameters
    and buffers, none, and on 47 healthy set-ups under eight seeds, none.

    ## Why it hurts
    Running statistics belong to the weights that made the activations. An average of weights makes others: evaluated
    with copied or initial statistics it can be far worse than the model it averages, and the average is then blamed.

    ## Fix
    Unsafe: ``surgery.recalibrate`` on the averaged model, which changes what evaluation computes and no weight.
    """

    CODE = "NS107"
    SLUG = "averaged-weights-stale-statistics"
    SEVERITY = Severity.ERROR
    NEEDS = ("averaged",)
    KEEPS = ("training", "evaluation")
    SOURCES = ("CuriousAI/mean-teacher#9", "pytorch/ignite#2592", "Izmailov et al. 2018, section 3.2")
    SICK = (
        partial(_averaged, examples.mlp, "copied"),
        partial(_averaged, examples.cnn, "initial"),
        partial(_averaged, examples.residual, "copied"),
        partial(_averaged, examples.mlp, "half initial"),
        partial(_averaged, examples.cnn, "half initial"),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_averaged, examples.cnn, "recalibrated"),
        partial(_averaged, examples.residual, "recalibrated"),
    )
    NEAR = (
        examples.Near(_moved, found=1.1e-3, quiet=0.9e-3),
        examples.Near(_halved, found=3.9, quiet=4.1),
        examples.Near(lambda share: _halved(0.0, share), found=0.17, quiet=0.16),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Compare parameters and buffers of both models, then the buffers with the data."""
        case = evidence.case
        if case.averaged is None:
            return
        source = tracking(case.model)
        mine = {_bare(path): module for path, module in tracking(case.averaged).items()}
        pairs = {path: (module, mine[path]) for path, module in source.items() if path in mine}
        equal = all(_copied(theirs, ours) for theirs, ours in pairs.values())
        differ = _differ(case.model, case.averaged)
        if not pairs or (equal and not differ):  # then it is the model, of which NS102 speaks
            return
        stale = [path for path, (theirs, ours) in pairs.items() if _copied(theirs, ours) or _initial(ours)]
        off = _off(case, evidence.batches) if stale and differ else {}
        places = [path for path in stale if off.get(path, 0.0) > _NEAR]
        if places:
            yield self._of_others(evidence, places, off, len(pairs))
        elif not evidence.untrained:
            yield from self._by_gain(evidence, list(pairs))

    def _of_others(self, evidence: Evidence, places: list[str], off: dict[str, float], count: int) -> Finding:
        worst = max(off[path] for path in places)
        gain = self._gain(evidence)
        loss = "" if gain.matters else "the loss of the averaged model falls by nothing that can be told with others"
        if evidence.case.eval_loader is not None:
            paid = evidence.gap.of("averaged weights")
            loss = f"with them the loss in evaluation is {paid:+.4g} against the trained model's"
        return self.finding(
            f"the averaged model's running statistics are copied or initial in {len(places)} of "
            f"{counted(count, 'norm')}; at its own weights the means lie up to {worst:.2g} standard deviations "
            "away",
            places,
            quantity="largest distance of a running mean from that of the data, in standard deviations",
            measured=worst,
            bound=_NEAR,
            cost=loss,
            fix=_FIX,
            severity=None if gain.matters else Severity.INFO,
        )

    def _gain(self, evidence: Evidence) -> Gain:
        assert evidence.case.averaged is not None
        with sandbox(evidence.case):
            return gain_by_recalibration(evidence.case, evidence.case.averaged, evidence.batches)

    def _by_gain(self, evidence: Evidence, paths: list[str]) -> Iterable[Finding]:
        gain = self._gain(evidence)
        if not evidence.is_costly(gain):
            return
        shift = {_bare(path): shift for path, shift in gain.shift.items()}
        yield self.finding(
            f"the averaged model's running statistics, neither copied nor initial, are not those of its weights: with "
            f"statistics of the training data its loss on these falls to 1/{gain.excess:.3g}",
            [path for path in paths if path in shift],
            quantity="loss in eval mode over that with pooled statistics",
            measured=gain.excess,
            bound=gain.BOUND,
            cost=f"the loss of the averaged model in eval mode is higher by {gain.loss:.4g} (+- {gain.error:.2g} over "
            f"{counted(len(gain.own), 'batch', 'batches')})",
            fix=_FIX,
            details={"shift": max(shift.values(), default=0.0)},
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Recalibrate the averaged model."""
        assert case.averaged is not None
        report = recalibrate(case.averaged, case.loader, case.eval_loss_fn or case.loss_fn, frozen=True)
        return f"recalibrated {counted(len(report.done), 'norm')} of the averaged model"


def _bare(path: str) -> str:
    """Take off the name under which torch's ``AveragedModel`` holds its model."""
    return path.removeprefix("module.")


def _differ(a: nn.Module, b: nn.Module) -> bool:
    theirs = {_bare(name): value for name, value in b.named_parameters()}
    return any(name in theirs and not torch.equal(value, theirs[name]) for name, value in a.named_parameters())


def _copied(theirs: Any, ours: Any) -> bool:
    return torch.equal(theirs.running_mean, ours.running_mean) and torch.equal(theirs.running_var, ours.running_var)


def _initial(ours: Any) -> bool:
    return not bool(ours.running_mean.any()) and bool((ours.running_var == 1).all())


def _off(case: Case, count: int) -> dict[str, float]:
    assert case.averaged is not None
    with sandbox(case):
        report = recalibrate(
            case.averaged, case.loader, case.eval_loss_fn or case.loss_fn, num_batches=count, frozen=True
        )
        return {_bare(change.path): change.numbers["mean_shift"] for change in report.done}
