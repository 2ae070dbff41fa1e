"""Plots, one kind a file: records and estimates in, a chart out."""
