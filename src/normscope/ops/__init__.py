"""Operations on tensors, with forward, backward and tangent written out. The one door to the mathematics."""

from normscope.ops.backward_terms import GradientTerms, batch_norm_backward_terms
from normscope.ops.batch_norm import ShapeError, batch_norm, batch_norm_given
from normscope.ops.gaussian import GaussianMoments, gaussian_moments
from normscope.ops.lp import lp_norm
from normscope.ops.moments import Moments, merge
from normscope.ops.per_sample import group_norm, instance_norm, layer_norm, rms_norm
from normscope.ops.standardize import standardize
from normscope.ops.statistics import moments_of

__all__ = [
    "GaussianMoments",
    "GradientTerms",
    "Moments",
    "ShapeError",
    "batch_norm",
    "batch_norm_backward_terms",
    "batch_norm_given",
    "gaussian_moments",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "lp_norm",
    "merge",
    "moments_of",
    "rms_norm",
    "standardize",
]
