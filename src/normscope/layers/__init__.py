"""Normalization layers, one a file: each a choice of axes and of a statistics set over an operation."""

from normscope.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normscope.layers.lazy_batch_norm import LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d
from normscope.layers.population import given_statistics, population_of, record_statistics
from normscope.layers.time_varying_noise import TimeVaryingNoise

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "TimeVaryingNoise",
    "given_statistics",
    "population_of",
    "record_statistics",
]
