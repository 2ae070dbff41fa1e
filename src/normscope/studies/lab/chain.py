"""Gradients through a random chain of wide layers: how fast they grow, measured and in theory."""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from normscope.studies.lab.streams import generator

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "linear": lambda x: x,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "leaky-relu": lambda x: F.leaky_relu(x, 0.1),
    "silu": F.silu,
    "hardtanh": F.hardtanh,
}


def growth(
    seed: int,
    *,
    width: int,
    depth: int,
    batch: int,
    activation: str = "relu",
    norm: bool = True,
    detached: bool = False,
    gain: float = 1.0,
    shift: float = 0.0,
    scale: float = 1.0,
    orthogonal: bool = False,
    residual: bool = False,
) -> list[float]:
    """Return the mean squared gradient at the pre-activations of each layer of a random chain.

    ``h <- activation(norm(W h))`` from Gaussian inputs, with a Gaussian gradient at the end that knows nothing of it.

    Args:
        seed: Of weights, inputs and gradient.
        width: Units of every layer.
        depth: Number of layers.
        batch: Samples.
        activation: One of ``ACTIVATIONS``.
        norm: Whether batch norm (eps 0) stands before the activation.
        detached: Whether its statistics are taken for constants in the backward pass.
        gain: Its gamma.
        shift: Its beta.
        scale: Factor on the usual weights (variance 2/width without norm and with a rectifier, else 1/width).
        orthogonal: Whether weights are orthogonal.
        residual: Whether each layer is added to what it was given.
    """
    source = generator(seed, "chain")
    h = torch.randn(batch, width, generator=source)
    variance = (1.0 if norm else _usual_gain(activation)) / width * scale**2
    taken: list[Tensor] = []
    act = ACTIVATIONS[activation]
    for _ in range(depth):
        weight = torch.randn(width, width, generator=source)
        weight = torch.linalg.qr(weight)[0] * scale if orthogonal else weight * math.sqrt(variance)
        pre = h @ weight.T
        pre = pre.requires_grad_() if not pre.requires_grad else pre
        pre.retain_grad()
        taken.append(pre)
        z = pre
        if norm:
            mean, centred = pre.mean(0), pre - pre.mean(0)
            sigma = centred.square().mean(0).sqrt()
            z = ((pre - mean.detach()) / sigma.detach()) if detached else centred / sigma
            z = gain * z + shift
        out = act(z)
        h = h + out if residual else out
    end = torch.randn(h.shape, generator=source)
    torch.autograd.backward([h], [end])
    return [float(pre.grad.double().square().mean()) for pre in taken if pre.grad is not None]


def rate(squares: Sequence[float], *, margin: int = 4) -> float:
    """Return the factor by which squared gradients grow per layer toward the input, from the middle layers' slope."""
    logs = np.log(np.asarray(squares, dtype=np.float64))[margin - 1 : len(squares) - margin]
    if len(logs) < 2 or not np.isfinite(logs).all():
        return math.nan
    return math.exp(-float(np.polyfit(np.arange(len(logs)), logs, 1)[0]))


def _usual_gain(activation: str) -> float:
    """Return the variance of usual initial weights times the width: He's for rectifiers, else 1."""
    return 2.0 if activation == "relu" else 1.0


@functools.cache
def theory_without_norm(activation: str, *, scale: float, depth: int) -> float:
    """Return the theoretical growth rate of a chain of infinite width without a norm, read as ``rate`` reads it.

    The variance of the pre-activations follows q -> s^2 E[phi(sqrt(q) z)^2], and the squared gradient grows by
    s^2 E[phi'(sqrt(q) z)^2] a layer toward the input (He's weights: twice that); Glorot & Bengio 2010 for small q.

    Args:
        activation: One of ``ACTIVATIONS``.
        scale: Factor on the weights, as in ``growth``.
        depth: Number of layers.
    """
    z, weights = _normal_grid()
    gain = _usual_gain(activation) * scale**2
    q, steps = gain, []
    for _ in range(depth):
        at = (math.sqrt(q) * z).requires_grad_()
        out = ACTIVATIONS[activation](at)
        (slopes,) = torch.autograd.grad(out.sum(), at)
        steps.append(gain * float((weights * slopes.square()).sum()))
        q = gain * float((weights * out.detach().square()).sum())
    squares = np.cumprod([1.0, *reversed(steps[:-1])])[::-1]
    return rate(list(squares))


def _normal_grid() -> tuple[Tensor, Tensor]:
    """Return a fine grid and the probabilities of a standard normal variable on it."""
    z = torch.linspace(-10, 10, 400_001, dtype=torch.float64)
    weights = torch.exp(-z * z / 2)
    return z, weights / weights.sum()


@functools.cache  # an integral over a fine grid, asked for again by every judge, figure and table
def theory(activation: str, batch: int | None = None, *, gain: float = 1.0, shift: float = 0.0) -> float:
    r"""Return the theoretical growth rate with batch norm.

    For large batches $E[(\gamma\varphi'(\gamma z+\beta))^2] / Var[\varphi(\gamma z+\beta)]$, z standard normal;
    for a finite batch Yang et al. 2019 (arXiv:1902.08129), theorem 8, for a rectifier with beta 0, and
    $(B-2)/(B-3)$ for a linear network.

    Args:
        activation: One of ``ACTIVATIONS``.
        batch: Samples; None for infinitely many. Finite ones are known for ``relu`` and ``linear`` alone.
        gain: Gamma.
        shift: Beta.
    """
    if batch is not None and activation == "linear":
        return (batch - 2) / (batch - 3)
    if batch is not None and activation == "relu" and shift == 0:
        c = -1 / (batch - 1)
        j = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
        slope = (math.pi - math.acos(c)) / math.pi
        return (slope + batch - 1) / ((batch - 3) * (1 - j)) - 1 / (batch - 3)
    z, weights = _normal_grid()
    at = (gain * z + shift).requires_grad_()
    out = ACTIVATIONS[activation](at)
    (slopes,) = torch.autograd.grad(out.sum(), at)
    out, at = out.detach(), at.detach()
    mean = (weights * out).sum()
    variance = (weights * (out - mean).square()).sum()
    return float(gain * gain * (weights * slopes.square()).sum() / variance)
