"""Healthy set-ups of many kinds, small: nothing is wrong with any of them, and no rule may say so.

Each entry of ``ZOO`` is a function that makes a ``Case``: a network trained for some steps as its kind is trained, in
the modes of training, with the data and the step that go with it.
"""

import zoo_loops
import zoo_networks
from _zoo import ZOO

__all__ = ["ZOO", "zoo_loops", "zoo_networks"]
