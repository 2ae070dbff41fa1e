"""Replays of another batch than the step's."""

import copy
from typing import Any

from normscope.modules.rng import RngState
from normscope.probes._replay import Replay


def batch_of(replay: Replay) -> Any:
    """Return the batch of the step."""
    return replay.batch


def beside(replay: Replay, batch: Any, streams: RngState | None = None) -> Replay:
    """Return a replay of the same open model and start on another batch, from other random streams if given."""
    other = copy.copy(replay)
    other.batch, other._origins, other.cache, other.draws_beside_torch = batch, {}, {}, None
    if streams is not None:
        other.start = copy.copy(replay.start)
        other.start.rng = streams
    return other
