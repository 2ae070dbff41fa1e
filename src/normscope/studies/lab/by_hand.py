"""The gradient of a dense network written out, for loops that need nothing else: half the time of autograd.

Gradient descent on a whole training set calls nothing else some thousands of times. Written out, values are overwritten
in place, no graph is built, and batch norm's statistics are taken once, without the care for large offsets that
``layers.BatchNorm1d`` takes (here its inputs are products of standardized data and small weights).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from normscope import layers
from normscope.studies.lab.models import MLP, Block, DeepLinear

Objective = Callable[[Tensor, Tensor], Tensor]
Stage = tuple[nn.Linear, nn.Module, nn.Module]


def gradient_by_hand(
    model: nn.Module, x: Tensor, targets: Tensor, objective: Objective
) -> Callable[[], tuple[Tensor, list[Tensor]]] | None:
    """Return what computes the loss of a network in train mode and its gradient, or None for a network not known here.

    Known are ``MLP`` and ``DeepLinear`` with tanh or no activation, and batch norm without options or no norm, if all
    their parameters are learnt. Running statistics do not move.

    Args:
        model: The network; its parameters are read at each call.
        x: All inputs (N, ...).
        targets: What the objective takes.
        objective: Loss of (outputs, targets).

    Returns:
        A function without arguments; it returns the loss and its gradient by each of ``model.parameters()``.
    """
    found = _stages(model)
    if found is None or not model.training or not all(parameter.requires_grad for parameter in model.parameters()):
        return None
    stages, parameters = found, list(model.parameters())
    inputs = x.flatten(1)

    def compute() -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            outputs, kept = _forward(stages, inputs)
        outputs.requires_grad_()
        loss = objective(outputs, targets)
        (upstream,) = torch.autograd.grad(loss, [outputs])
        gradients = _backward(stages, kept, upstream)
        return loss.detach(), [gradients[parameter] for parameter in parameters]

    return compute


def _stages(model: nn.Module) -> list[Stage] | None:
    if type(model) not in (MLP, DeepLinear):
        return None
    stages: list[Stage] = []
    for block in model.get_submodule("blocks").children():
        if not isinstance(block, Block) or not isinstance(block.linear, nn.Linear):
            return None
        if type(block.activation) not in (nn.Tanh, nn.Identity) or not _known(block.norm):
            return None
        stages.append((block.linear, block.norm, block.activation))
    if isinstance(model, MLP):
        stages.append((model.head, nn.Identity(), nn.Identity()))
    return stages


def _known(norm: nn.Module) -> bool:
    if type(norm) is layers.BatchNorm1d:
        return norm.affine and norm.activation is None and norm.trains_as_torch() and norm.use_running is None
    return type(norm) is nn.Identity


#: Of a stage: its input, its output, and of batch norm the input, the mean and the inverse deviation.
_Kept = tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor] | None]


def _forward(stages: Sequence[Stage], h: Tensor) -> tuple[Tensor, list[_Kept]]:
    kept: list[_Kept] = []
    for linear, norm, activation in stages:
        before, moments = h, None
        h = nn.functional.linear(h, linear.weight, linear.bias)
        if isinstance(norm, layers.BatchNorm1d):
            y, mean, rstd = torch.native_batch_norm(h, norm.weight, norm.bias, None, None, True, 0.0, norm.eps)
            h, moments = y, (h, mean, rstd)
        if isinstance(activation, nn.Tanh):
            h.tanh_()
        kept.append((before, h, moments))
    return h, kept


@torch.no_grad()
def _backward(stages: Sequence[Stage], kept: Sequence[_Kept], g: Tensor) -> dict[Tensor, Tensor]:
    gradients: dict[Tensor, Tensor] = {}
    for index in reversed(range(len(stages))):
        (linear, norm, activation), (before, after, moments) = stages[index], kept[index]
        if isinstance(activation, nn.Tanh):
            g = torch.ops.aten.tanh_backward(g, after)
        if isinstance(norm, layers.BatchNorm1d) and moments is not None:
            x, mean, rstd = moments
            g, gradients[norm.weight], gradients[norm.bias] = torch.ops.aten.native_batch_norm_backward(
                g, x, norm.weight, None, None, mean, rstd, True, norm.eps, [True, True, True]
            )
        gradients[linear.weight] = g.t() @ before
        if linear.bias is not None:
            gradients[linear.bias] = g.sum(0)
        if index:
            g = g @ linear.weight
    return gradients
