"""Operations on tensors, with forward, backward and tangent written out. The one door to the mathematics."""

from normscope.ops.backward_terms import GradientTerms, batch_norm_backward_terms
from normscope.ops.batch_norm import ShapeError, batch_norm, batch_norm_given
from normscope.ops.moments import Moments, merge
from normscope.ops.standardize import standardize
from normscope.ops.statistics import moments_of

__all__ = [
    "GradientTerms",
    "Moments",
    "ShapeError",
    "batch_norm",
    "batch_norm_backward_terms",
    "batch_norm_given",
    "merge",
    "moments_of",
    "standardize",
]
