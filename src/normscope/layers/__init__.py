"""Normalization layers, one a file: each a choice of axes and of a statistics set over an operation."""

from torch.nn.utils.parametrizations import weight_norm

from normscope.layers._batch_norm import AbstractBatchNorm
from normscope.layers._layer import AbstractLayer
from normscope.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normscope.layers.dynamic_tanh import DynamicTanh
from normscope.layers.group_norm import GroupNorm
from normscope.layers.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from normscope.layers.layer_norm import LayerNorm
from normscope.layers.lazy_batch_norm import LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d
from normscope.layers.lp_norm import LpNorm
from normscope.layers.options import BatchNormOptions
from normscope.layers.population import given_statistics, population_of, record_statistics
from normscope.layers.rms_norm import RMSNorm
from normscope.layers.scalars import ScalarBias, ScalarGain
from normscope.layers.time_varying_noise import TimeVaryingNoise
from normscope.layers.weight_standardization import WeightStandardization, weight_standardize

__all__ = [
    "AbstractBatchNorm",
    "AbstractLayer",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormOptions",
    "DynamicTanh",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LpNorm",
    "RMSNorm",
    "ScalarBias",
    "ScalarGain",
    "TimeVaryingNoise",
    "WeightStandardization",
    "given_statistics",
    "population_of",
    "record_statistics",
    "weight_norm",
    "weight_standardize",
]
