"""What becomes of the options of this library's batch norms when they are converted."""

from typing import Any

from torch import nn

from normscope.layers import BatchNormOptions
from normscope.layers.options import NAMES
from normscope.surgery._sites import OURS


def inherited(old: Any, asked: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the options of a batch norm of this library that the new one keeps, and say which it does not."""
    if type(old) not in OURS:
        group = getattr(old, "process_group", None)
        return ({"process_group": group} if asked.get("statistics") == "sync" and group is not None else {}), ""
    statistics = asked.get("statistics", "batch")
    new = BatchNormOptions.of(old, statistics=statistics, activation=asked.get("activation", old.activation))
    misplaced = new.misplaced(track_running_stats=asked.get("track_running_stats", old.track_running_stats))
    lost = [name for name in misplaced if name not in asked]
    kept = {name: getattr(old, name) for name in NAMES if name not in asked and name not in lost}
    return kept, f"dropped, as it does not apply to {statistics} statistics: {', '.join(lost)}" if lost else ""


def not_in(old: Any, new: nn.Module) -> str:
    """Say which options of a batch norm of this library its successor does not have."""
    if type(old) not in OURS or type(new) in OURS:
        return ""
    lost = [name for name in BatchNormOptions.of(old).changed() if name != "negative_slope"]
    if old.frozen:
        lost = [name for name in lost if name not in ("use_running", "update_statistics")]
    return f"options dropped: {', '.join(lost)}" if lost else ""


def hand_over(old: nn.Module, new: nn.Module, name: str) -> None:
    """Let ``new`` have a buffer of ``old``."""
    mine, theirs = new._buffers.get(name), old._buffers.get(name)
    if name == "pending" and theirs is None:
        return
    wider = name.startswith("running_") and getattr(new, "float32_statistics", False)
    if wider and mine is not None and theirs is not None and mine.dtype != theirs.dtype:
        mine.copy_(theirs)  # asked for now: the same values, kept wider from here on
    else:
        new._buffers[name] = theirs
