"""Modules as trees of tensors: their state, their hooks, where layers and norms are, how a model is called."""
