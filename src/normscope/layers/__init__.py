"""Normalization layers, one a file: each a choice of axes and of a statistics set over an operation."""
