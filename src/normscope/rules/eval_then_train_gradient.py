"""Gradients through running statistics that have changed since."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from normscope import layers
from normscope.evidence.case import Case
from normscope.evidence.evidence import Evidence
from normscope.records import Finding, Severity
from normscope.rules import _nets
from normscope.rules._rule import AbstractRule
from normscope.surgery import convert


def _two_modes(net: Any, **options: Any) -> Case:
    """A loss of an eval-mode pass and a train-mode pass together, as in some consistency losses."""
    case = _nets.case(net, **options)
    optimizer = case.optimizer
    assert optimizer is not None

    def step(model: nn.Module, batch: Any) -> None:
        optimizer.zero_grad()
        model.eval()
        consistent = _nets.loss_fn(model, batch)
        model.train()
        loss = _nets.loss_fn(model, batch) + 0.5 * consistent
        loss.backward()
        optimizer.step()

    case.step = step
    return case


class EvalThenTrainGradient(AbstractRule):
    r"""The backward pass of an eval-mode forward uses running statistics that have changed meanwhile.

    ## Finds
    During a few of the user's own training steps a norm in eval mode is called with gradient, its running statistics
    change before the backward pass of that call (by a train-mode pass of the same step), and its class keeps no copy of
    them for the backward pass. Torch's norms do not, and raise nothing: the change bumps no version counter.

    ## Why it hurts
    The gradient is that of another function than the one that was evaluated: normalized values are recomputed with the
    new statistics. Errors of half the gradient's length have been measured.

    ## Fix
    Safe: the norms become this library's, which keep what they normalized by for the backward pass.
    """

    CODE = "NS111"
    SLUG = "eval-then-train-gradient"
    SEVERITY = Severity.ERROR
    NEEDS = ("loop",)
    SAFE = True
    SOURCES = ("pytorch/pytorch#13402", "pytorch/pytorch#120622")
    SICK = (partial(_two_modes, _nets.mlp), partial(_two_modes, _nets.cnn), partial(_two_modes, _nets.residual))
    WELL = (
        partial(_nets.case, _nets.mlp),
        partial(_two_modes, _nets.cnn, norm=layers.BatchNorm2d),
        partial(_two_modes, _nets.mlp, norm=layers.BatchNorm1d),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look for stale backward passes of norms that keep no copy."""
        if not evidence.tracking:
            return
        ours = (layers.BatchNorm1d, layers.BatchNorm2d, layers.BatchNorm3d)
        wrong = [
            call for call in evidence.training.calls if call.stale and not isinstance(evidence.norms[call.path], ours)
        ]
        if not wrong:
            return
        places = list(dict.fromkeys(call.path for call in wrong))
        yield self.finding(
            f"{len(places)} norms were called in eval mode with gradient, and their running statistics changed before "
            f"the backward pass: at {len(wrong)} calls the gradient is not that of the loss",
            places,
            quantity="calls whose gradient is taken with other statistics than its value",
            measured=float(len(wrong)),
            bound=0.0,
            cost="the gradient of that part of the loss is wrong, and nothing says so",
            fix="use norms that keep a copy: normscope.surgery.convert(model, 'batch', only=[...]); or do the backward "
            "pass of the eval-mode loss before the train-mode forward",
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Convert the norms of the finding to this library's."""
        report = convert(case.model, "batch", only=list(finding.places))
        return f"converted {len(report.done)} norms to normscope's"
