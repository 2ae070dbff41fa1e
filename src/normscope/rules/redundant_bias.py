"""Biases that batch norm takes out again."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from normscope import layers
from normscope.evidence import Case, Evidence, Finding, Severity, examples, take_out
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule
from normscope.surgery import freeze
from normscope.surgery.pairs import Pair


def _frozen(model: nn.Module) -> None:
    freeze(model)


class RedundantBias(AbstractRule):
    r"""A bias stands right before a batch norm, which subtracts it again.

    ## Finds
    A linear layer or convolution with a bias whose output is read by one batch norm alone, and that norm normalizes by
    the batch. Frozen norms, norms in eval mode and layers that anybody else reads are passed over: there the bias acts.

    Calibrated over six seeds: planted defects found, 24 of 24; on healthy set-ups that come near, none.

    ## Why it hurts
    The mean of the batch is subtracted, and the bias with it: it changes nothing in training, and its gradient is zero
    but for rounding. It costs memory and time, and what an optimizer makes of that rounding is noise: Adam, which
    divides by the gradient's size, moves it by the full learning rate (4e-3 where SGD moved it 4e-9). The running mean
    follows it about.

    ## Fix
    Unsafe, since names vanish from the state dict: the bias is subtracted from the running mean and dropped, from the
    layer and from the optimizer. What the network computes, in training and evaluation, stays to rounding (2e-7).
    """

    CODE = "NS122"
    SLUG = "redundant-bias"
    SEVERITY = Severity.INFO
    KEEPS = ("training", "evaluation")
    SOURCES = ("huggingface/pytorch-image-models#357", "arXiv:1502.03167 section 3.2")
    SICK = (
        examples.Planted(partial(examples.healthy, examples.mlp, bias=True), ["0", "3", "6"]),
        examples.Planted(partial(examples.healthy, examples.cnn, bias=True), ["0", "4"]),
        examples.Planted(
            partial(examples.healthy, examples.residual, bias=True, norm=layers.BatchNorm2d),
            ["stem.0", "blocks.0.0", "blocks.0.3", "blocks.1.0", "blocks.1.3"],
        ),
        examples.Planted(partial(examples.healthy, examples.sequence, bias=True), ["inlet", "middle"]),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(examples.healthy, examples.cnn, bias=True, change=_frozen),
        partial(examples.healthy, examples.residual, bias=True, norm=partial(nn.GroupNorm, 4)),
    )
    NEAR = (
        examples.Near(
            lambda bias: examples.healthy(examples.mlp, bias=bias, depth=1, trained=0), found=True, quiet=False
        ),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look at what stands before each norm that normalizes by the batch."""
        pairs = _pairs(evidence)
        if not pairs:
            return
        places = [pair.linear.path for pair in pairs]
        biases: list[Any] = [pair.linear.module.bias for pair in pairs]
        yield self.finding(
            f"{counted(len(pairs), 'layer adds', 'layers add')} a bias that the batch norm after it subtracts again",
            places,
            quantity="numbers that are learnt and have no effect",
            measured=float(sum(bias.numel() for bias in biases)),
            bound=0.0,
            cost="memory, time, and a running mean that follows the noise of what is learnt there",
            fix="make these layers with bias=False; in a trained model first subtract the bias from the running mean",
            details={"largest_bias": max(float(bias.detach().abs().max()) for bias in biases)},
        )

    @torch.no_grad()
    def repair(self, case: Case, finding: Finding) -> str:
        """Take the biases of the finding into the running means, and drop them."""
        dropped = []
        for pair in _pairs(Evidence(case)):
            if pair.linear.path not in finding.places:
                continue
            norm: Any = pair.norm.module
            linear: Any = pair.linear.module
            norm.running_mean.sub_(linear.bias.to(norm.running_mean))
            dropped.append(linear.bias)
            linear.bias = None
        if case.optimizer is not None:
            take_out(case.optimizer, dropped)
            for bias in dropped:
                case.optimizer.state.pop(bias, None)
        return f"dropped {counted(len(dropped), 'bias', 'biases')}, each taken into the running mean after it"


def _pairs(evidence: Evidence) -> list[Pair]:
    if not any(getattr(module, "bias", None) is not None for module in evidence.modules.values()):
        return []
    found = []
    for path, module in evidence.updating.items():
        if getattr(module, "use_running", None) is True or path not in evidence.flow.by_path:
            continue
        pair = evidence.flow.pair(evidence.flow.by_path[path], "before")
        if isinstance(pair, Pair) and pair.linear.module.bias is not None:
            found.append(pair)
    return found
