"""Vectors over all trainable parameters, and what an evaluation of the loss gives."""

from dataclasses import dataclass

import torch
from torch import Tensor

Vector = list[Tensor]
"""One flat tensor for each kind (dtype, device) of trainable parameter."""


def dot(a: Vector, b: Vector) -> float:
    """Return the inner product of two vectors."""
    return sum(float(torch.dot(p, q)) for p, q in zip(a, b, strict=True))


def norm(a: Vector) -> float:
    """Return the Euclidean length of a vector."""
    return sum(float(torch.linalg.vector_norm(p)) ** 2 for p in a) ** 0.5


def difference(a: Vector, b: Vector) -> Vector:
    """Return ``a - b``."""
    return [p - q for p, q in zip(a, b, strict=True)]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The loss at some parameters, and its gradient.

    Attributes:
        loss: Scalar, detached from its graph.
        gradient: Over all trainable parameters, or as asked for; empty if no gradient was asked for.
    """

    loss: Tensor
    gradient: Vector
