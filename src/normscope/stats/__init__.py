"""Statistics: arrays in, estimates out. Knows NumPy and SciPy, and nothing of networks."""

from normscope.stats._values import censor as censor
from normscope.stats.decide import Decision as Decision, alike as alike, decide as decide, no_worse as no_worse
from normscope.stats.equivalence import tost as tost
from normscope.stats.interpolation import extent as extent, interpolate as interpolate
from normscope.stats.intervals import interval as interval, paired_interval as paired_interval
from normscope.stats.multiplicity import adjust as adjust, as_judged_alone as as_judged_alone, holm as holm
from normscope.stats.p_values import LEVEL as LEVEL, TWO_LOOKS_LEVEL as TWO_LOOKS_LEVEL, two_looks as two_looks
from normscope.stats.ratio import ratio_interval as ratio_interval
from normscope.stats.slopes import proportional as proportional, slope_per_seed as slope_per_seed
from normscope.stats.survival import kaplan_meier as kaplan_meier, restricted_mean as restricted_mean
