"""Surgery on whole models: a model in, the same model out, changed in place, and a report of what was done.

Every operation is all or nothing: if it raises, the model is bit for bit what it was.
"""

from normscope.surgery._modules import ChannelAffine, ChannelsLast, RMSNorm
from normscope.surgery._report import Change, Report, Skip
from normscope.surgery._sites import norm_sites
from normscope.surgery._trying import Statistics, statistics_of
from normscope.surgery.arm_report import ArmReport
from normscope.surgery.arms import ARMS, arm, make_arm, plan
from normscope.surgery.average_buffers import average_buffers
from normscope.surgery.convert import convert
from normscope.surgery.fold import fold
from normscope.surgery.freeze import freeze, is_frozen, unfreeze
from normscope.surgery.functional import FunctionalCall, functional_norms
from normscope.surgery.recalibrate import recalibrate
from normscope.surgery.strip import strip

__all__ = [
    "ARMS",
    "ArmReport",
    "Change",
    "ChannelAffine",
    "ChannelsLast",
    "FunctionalCall",
    "RMSNorm",
    "Report",
    "Skip",
    "Statistics",
    "arm",
    "average_buffers",
    "convert",
    "fold",
    "freeze",
    "functional_norms",
    "is_frozen",
    "make_arm",
    "norm_sites",
    "plan",
    "recalibrate",
    "statistics_of",
    "strip",
    "unfreeze",
]
