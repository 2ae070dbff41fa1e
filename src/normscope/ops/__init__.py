"""Operations on tensors, with forward, backward and tangent written out. The one door to the mathematics."""

from normscope.ops.backward_terms import (
    GradientTerms,
    batch_norm_backward_terms,
    layer_norm_backward_terms,
    rms_norm_backward_terms,
)
from normscope.ops.batch_norm import ShapeError, batch_norm, batch_norm_given, batch_renorm, ghost_batch_norm
from normscope.ops.dynamic_tanh import dynamic_tanh
from normscope.ops.gaussian import GaussianMoments, gaussian_moments
from normscope.ops.lp import lp_norm
from normscope.ops.moments import Moments, merge, merge_all
from normscope.ops.normalize import normalize, standardize
from normscope.ops.per_sample import group_norm, instance_norm, layer_norm, rms_norm
from normscope.ops.statistics import moments_of
from normscope.ops.ways.choose import Explanation, explain, kernel_of_rows, using
from normscope.ops.ways.in_place import batch_norm_in_place

__all__ = [
    "Explanation",
    "GaussianMoments",
    "GradientTerms",
    "Moments",
    "ShapeError",
    "batch_norm",
    "batch_norm_backward_terms",
    "batch_norm_given",
    "batch_norm_in_place",
    "batch_renorm",
    "dynamic_tanh",
    "explain",
    "gaussian_moments",
    "ghost_batch_norm",
    "group_norm",
    "instance_norm",
    "kernel_of_rows",
    "layer_norm",
    "layer_norm_backward_terms",
    "lp_norm",
    "merge",
    "merge_all",
    "moments_of",
    "normalize",
    "rms_norm",
    "rms_norm_backward_terms",
    "standardize",
    "using",
]
