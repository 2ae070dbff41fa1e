"""Probes, one a file: instruments that attach to a training loop and leave no trace."""
