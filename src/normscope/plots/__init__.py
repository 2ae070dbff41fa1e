"""Plots, one kind a file: records and estimates in, a chart out.

Frames are those of ``Store.frame``: columns ``arm``, ``seed``, ``step``, ``site``, ``name``, ``value`` (others are
ignored). Altair is imported when a figure is drawn, not here.
"""

from normscope.plots._figure import Figure as Figure, Table as Table
from normscope.plots._frames import natural_key as natural_key
from normscope.plots._layers import short_names as short_names
from normscope.plots._names import readable as readable
from normscope.plots._theme import PALETTE as PALETTE, theme as theme
from normscope.plots._words import (
    effect_words as effect_words,
    margin_words as margin_words,
    number as number,
    outcome_icon as outcome_icon,
)
from normscope.plots.by_depth import by_depth as by_depth
from normscope.plots.by_layer import by_layer as by_layer
from normscope.plots.curves import curves as curves
from normscope.plots.forest import forest as forest
from normscope.plots.heatmap import heatmap as heatmap
from normscope.plots.landscape_band import landscape_band as landscape_band
from normscope.plots.percentiles import percentiles as percentiles
from normscope.plots.versus_theory import versus_theory as versus_theory
