"""Gradients through running statistics that have changed since."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope import layers
from normscope.evidence import Case, Evidence, Finding, Severity, convert_places, examples, of_this_library
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule


def _two_modes(net: Any, *, early: bool = False, **options: Any) -> Case:
    """A loss of an eval-mode pass and a train-mode pass together, as in some consistency losses.

    Args:
        net: Makes the network.
        early: Whether the eval-mode pass has a backward pass of its own before the train-mode pass begins.
        options: For ``examples.healthy``.
    """

    def losses(model: nn.Module, batch: Any) -> Iterator[Tensor]:
        consistent = 0.5 * examples.loss_fn(model.eval(), batch)
        if early:
            yield consistent
            consistent = torch.zeros(())
        yield examples.loss_fn(model.train(), batch) + consistent

    return examples.stepped(examples.healthy(net, **options), losses)


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
    KEEPS = ("training", "evaluation")
    SOURCES = ("pytorch/pytorch#13402", "pytorch/pytorch#120622")
    SICK = (
        partial(_two_modes, examples.mlp),
        partial(_two_modes, examples.cnn),
        partial(_two_modes, examples.residual),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_two_modes, examples.cnn, norm=layers.BatchNorm2d),
        partial(_two_modes, examples.mlp, norm=layers.BatchNorm1d),
    )
    NEAR = (examples.Near(lambda early: _two_modes(examples.mlp, early=early, trained=0), found=False, quiet=True),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look for stale backward passes of norms that keep no copy."""
        if not evidence.tracking:
            return
        stale = [call for call in evidence.training.calls if call.stale]
        wrong = [call for call in stale if not of_this_library(evidence.norms[call.path])]
        if not wrong:
            return
        places = list(dict.fromkeys(call.path for call in wrong))
        yield self.finding(
            f"{counted(len(places), 'norm was', 'norms were')} called in eval mode with gradient, and the running "
            "statistics changed before "
            f"the backward pass: at {counted(len(wrong), 'call')} the gradient is not that of the loss",
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
        return f"converted {counted(convert_places(case, finding, 'batch'), 'norm')} to normscope's"
