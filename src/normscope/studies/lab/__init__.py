"""What studies share: models, normalizations, data, the training loop, and the names of random streams.

Import from the files themselves (``lab.models``, ``lab.data``, ...): each costs what it needs.
"""
