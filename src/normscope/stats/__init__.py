"""Statistics: arrays in, estimates out. Knows NumPy and SciPy, and nothing of networks."""
