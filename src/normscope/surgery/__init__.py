"""Surgery on whole models: a model in, the same model out, changed in place, and a report of what was done.

Every operation is all or nothing: if it raises, the model is bit for bit what it was.
"""

from normscope.surgery._modules import ChannelAffine, ChannelsLast, RMSNorm
from normscope.surgery._report import Change, Report, Skip
from normscope.surgery.average_buffers import average_buffers
from normscope.surgery.convert import convert
from normscope.surgery.fold import fold
from normscope.surgery.freeze import freeze, is_frozen, unfreeze
from normscope.surgery.recalibrate import recalibrate
from normscope.surgery.strip import strip

__all__ = [
    "Change",
    "ChannelAffine",
    "ChannelsLast",
    "RMSNorm",
    "Report",
    "Skip",
    "average_buffers",
    "convert",
    "fold",
    "freeze",
    "is_frozen",
    "recalibrate",
    "strip",
    "unfreeze",
]
