"""The scale of what each linear layer puts out, kept when the norms go.

A network without its norms starts with signals that shrink or grow from layer to layer. The layer-sequential remedy
(Mishkin & Matas, 2016, algorithm 1): in one forward, in the order of execution, each linear or convolutional layer's
weights and bias are divided by a number, so that its output has the standard deviation that is wanted. Wanted is what
the network had with its norms: behind the norm, where the layer feeds a norm directly; else at the layer itself.
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from normscope.modules.call import run, set_mode
from normscope.modules.state import traceless
from normscope.modules.wrapped import eagerly, is_compiled
from normscope.surgery._fast_paths import without_fast_paths
from normscope.surgery.absorb import LINEAR

_LEAST = 1e-4  # a branch that begins at zero stays as it is


def output_scales(model: nn.Module, norms: Iterable[nn.Module], example: Any) -> dict[nn.Module, float]:
    """Measure the standard deviation that the output of each linear layer has, behind the norm that it feeds if any.

    Args:
        model: The model with its norms; left as it was.
        norms: The norms. They normalize by the example; everything else is in evaluation mode.
        example: A batch of input to the model.
    """
    found: dict[nn.Module, float] = {}
    latest: dict[str, Any] = {}
    feeds: dict[nn.Module, nn.Module] = {}

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and module not in found:
            found[module] = _std(output)
            latest.update(module=module, output=output)

    def enter_norm(norm: nn.Module, args: Any) -> None:
        if args and args[0] is latest.get("output"):
            feeds[norm] = latest["module"]

    def leave_norm(norm: nn.Module, _: Any, output: Any) -> None:
        fed = feeds.pop(norm, None)
        if fed is not None and isinstance(output, Tensor) and (std := _std(output)) > _LEAST:
            found[fed] = std

    with traceless(model), without_fast_paths(), eagerly(is_compiled(model)):
        set_mode(model, False)
        for module in model.modules():
            if isinstance(module, tuple(LINEAR)):
                module.register_forward_hook(leave)
        for norm in norms:
            norm.training = "train" not in vars(norm)  # a frozen norm stays so
            norm.register_forward_pre_hook(enter_norm)
            norm.register_forward_hook(leave_norm)
        run(model, example)
    return found


def match_scales(model: nn.Module, wanted: dict[nn.Module, float], example: Any) -> dict[nn.Module, float]:
    """Scale the weights of linear layers, in the order of execution, so that each output has a standard deviation.

    Args:
        model: The model, its weights changed in place.
        wanted: The standard deviations.
        example: A batch of input to the model.

    Returns:
        The factors by which weights and biases were multiplied. Layers are left whose output does not vary, that are
        tied to another module, or whose weight cannot be set.
    """
    factors: dict[nn.Module, float] = {}
    holders = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))

    def leave(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        if module not in factors:
            std = _std(output)
            factors[module] = wanted[module] / std if _LEAST < std < math.inf else 1.0
        return output * factors[module]

    with traceless(model), without_fast_paths(), eagerly(is_compiled(model)):
        set_mode(model, False)
        for module in wanted:
            if wanted[module] > _LEAST and _can_be_scaled(module, holders):
                module.register_forward_hook(leave)
        run(model, example)
    for module, factor in factors.items():
        _scale(module, factor)
    return factors


def _std(output: Tensor) -> float:
    return output.detach().double().std(correction=0).item() if output.numel() else 0.0


def _can_be_scaled(module: nn.Module, holders: Counter[int]) -> bool:
    if any(holders[id(p)] > 1 for p in module.parameters(recurse=False)):
        return False
    if is_parametrized(module, "weight"):
        steps = module.parametrizations["weight"]  # type: ignore[index]
        return all(hasattr(step, "right_inverse") for step in steps)
    return "weight" in module._parameters or "weight_g" in module._parameters


@torch.no_grad()
def _scale(module: Any, factor: float) -> None:
    if is_parametrized(module, "weight"):
        module.weight = module.weight * factor
    elif "weight_g" in module._parameters:  # torch.nn.utils.weight_norm, whose norm is a parameter
        module.weight_g.mul_(factor)
    else:
        module.weight.mul_(factor)
    if module.bias is not None and not is_parametrized(module, "bias"):
        module.bias.mul_(factor)
