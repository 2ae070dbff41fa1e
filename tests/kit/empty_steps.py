"""A mark for tests that probe a model in steps in which the loop does nothing: what is read comes from replays."""

import pytest

EMPTY_STEPS = pytest.mark.filterwarnings(
    "ignore:.*(did not run in this step|no backward pass came back):normscope.probes.WiringWarning"
)
