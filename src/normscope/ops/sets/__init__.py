"""Which set of values the statistics come from, one set a file: all that tells the variants of batch norm apart."""

from normscope.ops.sets.batch import BATCH, Batch, StatisticsSet
from normscope.ops.sets.ghost import fold, group_sizes, unfold
from normscope.ops.sets.masked import Masked, mask_of_lengths
from normscope.ops.sets.renorm import Renorm
from normscope.ops.sets.synchronised import Synchronised

__all__ = [
    "BATCH",
    "Batch",
    "Masked",
    "Renorm",
    "StatisticsSet",
    "Synchronised",
    "fold",
    "group_sizes",
    "mask_of_lengths",
    "unfold",
]
