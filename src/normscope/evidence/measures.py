"""Small measures that several rules take."""

from torch.nn import Module

from normscope import layers


def of_this_library(module: Module) -> bool:
    """Whether a batch norm is this library's: it keeps what it normalized by, and takes data about their mean."""
    return isinstance(module, (layers.BatchNorm1d, layers.BatchNorm2d, layers.BatchNorm3d))
