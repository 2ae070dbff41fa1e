"""Losses of gradients by inputs, in a network whose norms couple the samples of a batch."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.evidence import Case, Coupling, Evidence, Finding, Severity, coupling_of, examples, input_gradients
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_BETWEEN = 0.1
_LEFT = 0.1  # of the share: so much may be left with batch norms held fixed


def _penalty(model: Any, batch: Any) -> Tensor:
    """The output's mean square and a penalty on the length of its gradient, as critics are trained."""
    x = (batch[0] if isinstance(batch, (tuple, list)) else batch).detach().requires_grad_()
    y = model(x)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y.square().mean() + (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def _penalised(net: Any, **options: Any) -> Case:
    case = examples.healthy(net, **options)
    case.loss_fn = _penalty
    return case


def _frozen(model: nn.Module) -> None:
    for norm in examples.norms(model):
        norm.eval()


class _Partly(nn.Module):
    """Adds a share of what a norm gives."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.norm, self.share = examples.batch_norm(affine=False), share

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * self.norm(x)


def _planted(share: float) -> Case:
    """A batch of 32 values ``3 +- 2`` in each channel: by the formula 1/10 lies between samples at a share of 0.267."""
    loader = [examples.two_values(3.0, 2.0)] * 3
    return examples.alone(_Partly(share), loader, loss_fn=_penalty)


class BatchCoupledLoss(AbstractRule):
    r"""The loss takes gradients by inputs through norms that couple the samples of a batch.

    ## Finds
    In a training step, calls of the model are sought by whose inputs gradients are taken with ``create_graph=True``, as
    penalties on gradients, losses of physics and losses of forces do. Such a call is repeated in the same modes, and
    the outputs of eight samples are followed back to all inputs. Found is a share of more than 0.1 of the lengths of
    these gradients that belongs to the inputs of other samples, if every module that mixes samples there normalizes by
    the batch, and, where these are torch's batch norms, if at most a tenth of that share is left with them in eval
    mode: atoms of a molecule and nodes of a graph are joined on purpose.

    Of losses that compare samples nothing is said: with batch norms in the network a sample's output depends on the
    others, but whether the loss gains by it cannot be seen in gradients.

    Calibrated over six seeds: planted defects found, 18 of 18; false alarms on 47 healthy set-ups under six seeds, 0 of
    282. On 20 networks in the style of public code with a penalty on gradients: found in 12 of 12 with batch norms, in
    0 of 8 without.

    ## Why it hurts
    A penalty on the gradient of each sample's output is meant for a function of that sample alone. With batch norm
    every output depends on all inputs: the gradient of their sum is another than that of the sample's own output, and
    the bound that is trained, such as that on the slope of a critic, is not that of the function.

    ## Fix
    Unsafe, in the user's code: norms that treat each sample by itself (layer, group or instance norm) in that network,
    and training anew; or its batch norms in eval mode where the gradient is taken.
    """

    CODE = "NS134"
    SLUG = "batch-coupled-loss"
    SEVERITY = Severity.WARNING
    SOURCES = ("arXiv:1704.00028 section 4: no critic batch normalization",)
    SICK = (
        partial(_penalised, examples.mlp),
        partial(_penalised, examples.cnn),
        partial(_penalised, examples.residual),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_penalised, examples.mlp, norm=nn.LayerNorm),
        partial(_penalised, examples.cnn, norm=partial(nn.GroupNorm, 2)),
        partial(_penalised, examples.mlp, change=_frozen),
    )
    NEAR = (examples.Near(_planted, found=0.27, quiet=0.26),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look for gradients by inputs, and follow outputs back to the inputs of other samples."""
        found = [coupling_of(evidence.case, call) for call in input_gradients(evidence.case)]
        coupled = [one for one in found if one is not None and _is_by_norms(one)]
        if not coupled:
            return
        worst = max(coupled, key=lambda one: one.between)
        places = list(dict.fromkeys(mixing.path for one in coupled for mixing in one.mixing))
        yield self.finding(
            f"the loss takes gradients of outputs by inputs, and {worst.between:.0%} of these lies between samples, "
            f"which {counted(len(places), 'module normalizes', 'modules normalize')} by the batch",
            places,
            quantity="share of the gradients of outputs by inputs that belongs to other samples",
            measured=worst.between,
            bound=_BETWEEN,
            cost=f"the gradient of the sum of all outputs is {worst.error:.0%} away from that of a sample's own output",
            fix="norms that treat each sample by itself (layer, group or instance norm), or batch norms in eval mode "
            "where the gradient is taken",
            details={"error": worst.error, "with_norms_fixed": worst.fixed},
        )


def _is_by_norms(one: Coupling) -> bool:
    if one.between <= _BETWEEN or not one.mixing or not all(mixing.normalizes for mixing in one.mixing):
        return False
    torchs = all(isinstance(mixing.module, nn.modules.batchnorm._BatchNorm) for mixing in one.mixing)
    return not torchs or one.fixed <= _LEFT * one.between
