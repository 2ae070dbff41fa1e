"""Running statistics that change where nothing is learnt."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.evidence import APART, Case, Evidence, Finding, NormCall, Severity, apart, examples
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule


def _pseudo_labels(net: Any, *, quiet: bool = False) -> Case:
    """A step that guesses labels for other data before it trains, as semi-supervised methods do."""

    def losses(model: nn.Module, batch: Any) -> Iterator[Tensor]:
        x, y = batch
        if quiet:
            model.eval()
        with torch.no_grad():
            guessed = model(x * 2 + 1).argmax(1)
        model.train()
        yield examples.loss_fn(model, (x, y)) + 0.1 * examples.loss_fn(model, (x, guessed))

    return examples.stepped(examples.healthy(net), losses)


def _one_more_call(grad: bool) -> Case:
    """A step in which one norm is called once more, with gradients recorded or not."""

    def losses(model: Any, batch: Any) -> Iterator[Tensor]:
        with torch.set_grad_enabled(grad):
            model[:2](batch[0])
        yield examples.loss_fn(model, batch)

    return examples.stepped(examples.healthy(examples.mlp, trained=0), losses)


class UpdatesWithoutGrad(AbstractRule):
    r"""Forward passes without gradient change the running statistics.

    ## Finds
    During a few of the user's own training steps a norm in train mode is called with gradients switched off, outside a
    backward pass (activation checkpointing runs so, and repeats the pass), and its running statistics change; and it is
    called with gradients too: it is trained in other passes. A norm that is only called without gradient belongs to a
    teacher, a target or a frozen part, of which NS101 and NS132 speak. It is an information where the data of both
    kinds of pass are alike (a divergence below 0.112, as of two kinds whose means lie one standard deviation apart):
    then the running statistics are near to those of either.

    ## Why it hurts
    A pass that only guesses labels, makes targets or logs a metric is meant to leave the model alone.
    ``torch.no_grad()`` does not stop batch norm: the data of that pass, often of another distribution, enter the
    running statistics with the same weight as the training data, and its outputs are normalized by their own batch.

    ## Fix
    Unsafe, in the user's code: put the model in eval mode around that pass, or use ``surgery.freeze`` on it meanwhile.
    """

    CODE = "NS106"
    SLUG = "updates-without-grad"
    SEVERITY = Severity.ERROR
    NEEDS = ("loop",)
    SOURCES = ("YU1ut/MixMatch-pytorch#43",)
    SICK = (
        partial(_pseudo_labels, examples.mlp),
        partial(_pseudo_labels, examples.cnn),
        partial(_pseudo_labels, examples.residual),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_pseudo_labels, examples.cnn, quiet=True),
        partial(_pseudo_labels, examples.residual, quiet=True),
    )
    NEAR = (examples.Near(_one_more_call, found=False, quiet=True),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look for updates without gradient."""
        if not evidence.tracking:
            return
        seen = evidence.training
        # What a re-entrant checkpoint runs without gradient it runs again, with gradient, in the backward pass.
        again = {(call.path, call.step) for call in seen.calls if call.recomputed}
        learning = {call.path for call in seen.calls if call.grad}
        calls = (call for call in seen.calls if call.updated and not call.grad and call.path in learning)
        wrong = [call for call in calls if (call.path, call.step) not in again]
        if not wrong:
            return
        places = list(dict.fromkeys(call.path for call in wrong))
        updates = [call for call in seen.calls if call.updated and call.path in learning]
        share, mixed = len(wrong) / len(updates), any(call.grad and call.path in places for call in updates)
        alike = mixed and all(_are_alike(evidence, path, wrong, updates) for path in places)
        yield self.finding(
            f"{counted(len(places), 'norm changes', 'norms change')} running statistics in passes without gradient: "
            f"{share:.0%} of all updates of norms that are trained",
            places,
            quantity="share of updates made without gradient",
            measured=share,
            bound=0.0,
            cost="the data of both passes are alike, so that it changes little"
            if alike
            else "evaluation uses a mixture of the statistics of both passes"
            if mixed
            else "the passes with gradients run in eval mode, on statistics that these passes alone have made",
            fix="put the model in eval mode around the pass under torch.no_grad(), and back after it",
            severity=Severity.INFO if alike else None,
        )


def _are_alike(evidence: Evidence, path: str, wrong: Sequence[NormCall], updates: Sequence[NormCall]) -> bool:
    """Whether a norm is given data of one kind in passes without gradient and in those with."""
    without = [call for call in wrong if call.path == path and call.finite]
    within = [call for call in updates if call.path == path and call.grad and call.finite]
    if not without or not within or without[0].mean.shape != within[0].mean.shape or not without[0].mean.numel():
        return False
    return apart([without, within], evidence.norms[path].eps).divergence < APART
