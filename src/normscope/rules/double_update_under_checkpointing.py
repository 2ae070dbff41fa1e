"""Two updates a step, one of them in the backward pass."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from normscope import layers
from normscope.evidence import Case, Evidence, Finding, Severity, convert_places, examples
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule


class _Checkpointed(nn.Module):
    """Runs a module under activation checkpointing."""

    def __init__(self, inner: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.inner(x)
        x = x if x.requires_grad else x.detach().requires_grad_()
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


def _checkpointed(net: Any, *, reentrant: bool = False, **options: Any) -> Case:
    case = examples.healthy(net, **options)
    case.model = _Checkpointed(case.model, reentrant=reentrant)
    case.model.train()
    return case


class DoubleUpdateUnderCheckpointing(AbstractRule):
    r"""Activation checkpointing has the running statistics updated twice a step.

    ## Finds
    During a few training steps a norm changes its running statistics inside a backward pass, having changed them in
    the forward pass of the same step: what checkpointing computes again counts again. Not under ``torch.compile``,
    which repeats no update.

    ## Why it hurts
    Two updates with the same batch are one update with momentum $1-(1-m)^2$, nearly twice as large: the running
    statistics are those of half as many batches and twice as noisy, and models with and without checkpointing differ
    in evaluation although their training is the same.

    ## Fix
    Safe: the norms become this library's, which update once a step under checkpointing. Their outputs in training and
    their gradients stay.
    """

    CODE = "NS110"
    SLUG = "double-update-under-checkpointing"
    SEVERITY = Severity.WARNING
    NEEDS = ("loop",)
    SAFE = True
    KEEPS = ("training", "evaluation")
    SOURCES = ("pytorch/pytorch#96136",)
    SICK = (
        partial(_checkpointed, examples.mlp),
        partial(_checkpointed, examples.cnn, reentrant=True),
        partial(_checkpointed, examples.residual),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_checkpointed, examples.mlp, norm=layers.BatchNorm1d),
        partial(_checkpointed, examples.cnn, norm=layers.BatchNorm2d),
    )
    NEAR = (
        examples.Near(
            lambda norm: _checkpointed(examples.mlp, norm=norm, trained=0),
            found=nn.BatchNorm1d,
            quiet=layers.BatchNorm1d,
        ),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look for updates in backward passes."""
        if not evidence.updating:
            return
        seen = evidence.training
        first = {(call.path, call.step) for call in seen.calls if call.updated and not call.recomputed}
        again = [call for call in seen.calls if call.updated and call.recomputed and (call.path, call.step) in first]
        if not again:
            return
        places = list(dict.fromkeys(call.path for call in again))
        meant = [call for call in seen.calls if call.updated and not call.recomputed and call.path in places]
        each = 1 + len(again) / len(meant)  # of a call: a pass may call a norm at several places
        steps = {(call.path, call.step) for call in meant}
        yield self.finding(
            f"{counted(len(places), 'checkpointed norm updates its', 'checkpointed norms update their')} running "
            f"statistics {each:.2g} times a {'step' if len(meant) == len(steps) else 'call'}",
            places,
            quantity="updates of running statistics for one call in a forward pass",
            measured=each,
            bound=1.0,
            cost="the running statistics forget twice as fast, and are twice as noisy",
            fix="use norms that update once a step: normscope.surgery.convert(model, 'batch', only=[...])",
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Convert the norms of the finding to this library's."""
        return f"converted {counted(convert_places(case, finding, 'batch'), 'norm')} to normscope's"
