"""How large the gradients of a transformer's feed-forward matrices are, near the output and by block."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normscope.studies.lab.transformer import Transformer


def last_gradients(model: Transformer, x: Tensor, labels: Tensor) -> dict[str, float]:
    """Return norms of the gradient of the last block's second feed-forward matrix.

    Args:
        model: The network, at its initial weights; its gradients are overwritten.
        x: Characters (N, T).
        labels: Labels (N, T).

    Returns:
        ``position``: mean over positions of the norm for the loss at that position alone, a product of the norms of the
        matrix's input and of the gradient at its output; ``batch``: the norm for the mean loss; ``stream``: mean square
        of what the last block puts out, in front of any last norm.
    """
    block = model.blocks[-1]
    contract = block.get_submodule("feedforward.contract")
    seen: dict[str, Tensor] = {}

    def keep(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["input"], seen["output"] = inputs[0].detach(), output
        output.retain_grad()

    def keep_stream(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["stream"] = output.detach()

    hooks = [contract.register_forward_hook(keep), block.register_forward_hook(keep_stream)]
    model.zero_grad()
    cross_entropy(model(x), labels, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    gradient = seen["output"].grad
    weight = contract.get_parameter("weight").grad
    assert gradient is not None
    assert weight is not None
    norms = seen["input"].norm(dim=-1) * gradient.norm(dim=-1)
    return {
        "position": float(norms.mean()),
        "batch": float(weight.norm()) / labels.numel(),
        "stream": float(seen["stream"].square().mean()),
    }


def block_gradients(model: nn.Module, x: Tensor, y: Tensor, blocks: int) -> list[float]:
    """Return the gradient norm of each block's second feed-forward matrix, and leave no gradient."""
    cross_entropy(model(x), y).backward()
    found = []
    for index in range(blocks):
        gradient = model.get_parameter(f"blocks.{index}.feedforward.contract.weight").grad
        assert gradient is not None
        found.append(float(gradient.norm()))
    model.zero_grad(set_to_none=True)
    return found


def with_branches_times(model: nn.Module, factor: float) -> nn.Module:
    """Return a copy of the model whose branches end in a matrix that is multiplied by the factor."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in scaled.named_parameters():
            if name.endswith(("attention.out.weight", "feedforward.contract.weight")):
                parameter.mul_(factor)
    return scaled
