"""Residual networks with batch, layer or group norm, or with one of the schemes that do without."""

from normscope.builders.residual import (
    ResidualBlock,
    ResidualNet,
    residual_cnn,
    residual_mlp,
    scalar_groups,
)
from normscope.builders.schemes import SCHEMES, Scheme

__all__ = [
    "SCHEMES",
    "ResidualBlock",
    "ResidualNet",
    "Scheme",
    "residual_cnn",
    "residual_mlp",
    "scalar_groups",
]
