"""All set-ups: importing a file lists its set-ups."""

from . import (  # noqa: F401
    companions,
    denoisers,
    dense_prediction,
    episodes_and_views,
    frozen,
    generators,
    language_models,
    loops,
    near_misses,
    other_classifiers,
    planted_modes,
    planted_norms,
    planted_shapes,
    planted_statistics,
    residual_networks,
    sequences,
    tables_and_points,
)
from .kit import HEALTHY, PLANTED

__all__ = ["HEALTHY", "PLANTED"]
