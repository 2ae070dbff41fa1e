"""Batch norms with options, the batches that they see, and what they remember."""

import torch
from torch import nn

from normscope import layers

F64 = torch.float64

#: One of each kind of option.
OPTIONS = [
    {"activation": "relu"},
    {"activation": "leaky_relu", "inplace": True},
    {"statistics": "ghost", "group_size": 4},
    {"statistics": "renorm"},
    {"statistics": "sync"},
    {"accumulate": 3, "momentum": None},
    {"on_bad_update": "raise", "unbiased_variance": False},
    {"float32_statistics": True},
    {"use_running": True},
]


def batches(count=6, shape=(8, 3), offset=2.0, seed=0):
    """Return batches in float64 whose means and deviations grow."""
    generator = torch.Generator().manual_seed(seed)
    return [offset + i + (1 + i) * torch.randn(shape, generator=generator, dtype=F64) for i in range(count)]


def copied_buffers(layer):
    """Return what a layer remembers, by name."""
    return {name: value.clone() for name, value in layer.named_buffers()}


def drawn_batch_norm(**options):
    """Return a batch norm of three channels in float64 with a drawn gain."""
    layer = layers.BatchNorm1d(3, dtype=F64, **options)
    nn.init.normal_(layer.weight)
    return layer
