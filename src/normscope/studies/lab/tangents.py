"""Input gradients of random chains of rectifiers, with and without skips and batch norm, and how alike they are."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import relu

from normscope.studies.lab.streams import generator


def start(seed: int, points: int, width: int, *, line: bool) -> tuple[Tensor, Tensor]:
    """Return the inputs (points, width) of a chain and their derivative along the direction that is asked for."""
    source = generator(seed, "inputs")
    along, offset = torch.randn(2, width, generator=source)
    places = torch.linspace(-2, 2, points)[:, None] * along + offset
    return places if line else torch.randn(points, width, generator=source), along.expand(points, width)


def tangents(seed: int, h: Tensor, tangent: Tensor, depth: int, norm: bool, branch: float) -> Iterator[Tensor]:
    """Yield the derivative (points, width) of each layer's output along the direction of ``tangent``.

    Args:
        seed: Of the weights.
        h: Inputs (points, width).
        tangent: Derivative of the inputs, of the same shape.
        depth: Number of layers.
        norm: Whether batch norm (eps 0) stands before the rectifier; its statistics are constants here.
        branch: Factor on a layer that is added to what it was given; 0 for no skips.
    """
    source, width = generator(seed, "chain"), h.shape[1]
    for _ in range(depth):
        weight = torch.randn(width, width, generator=source) * math.sqrt(2 / width)
        z, slope = h, tangent
        if norm:
            sigma = h.std(0, correction=0)
            z, slope = (h - h.mean(0)) / sigma, tangent / sigma
        out, out_slope = relu(z) @ weight.T, (slope * (z > 0)) @ weight.T
        h, tangent = (h + branch * out, tangent + branch * out_slope) if branch else (out, out_slope)
        yield tangent


def autocorrelation(values: Tensor, reach: int) -> float:
    """Return the mean cosine of two rows of (points, width), over all pairs 1 to ``reach`` rows apart."""
    unit = values.double() / values.double().norm(dim=1, keepdim=True)
    cosines = torch.triu(unit @ unit.T, 1)
    near = torch.triu(cosines, reach + 1)
    points = len(values)
    pairs = reach * points - reach * (reach + 1) / 2
    return float((cosines.sum() - near.sum()) / pairs)


def theory(depth: int, branch: float) -> float:
    r"""Return the correlation of gradients at independent inputs with skips and batch norm, for infinite width.

    With q the variance over the inputs, which grows by $\beta^2(1-1/\pi)$ a layer, the squared gradient grows by
    $1+\beta^2/q$ and the product of two inputs' gradients by $1+\beta^2/2q$, as half of the active units are shared.

    Args:
        depth: Number of layers.
        branch: $\beta$, the factor on each layer.
    """
    q, found = 1.0, 1.0
    for _ in range(depth):
        found *= (1 + branch**2 / (2 * q)) / (1 + branch**2 / q)
        q += branch**2 * (1 - 1 / math.pi)
    return found
