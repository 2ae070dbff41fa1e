"""What becomes of the options of this library's batch norms when they are converted."""

from typing import Any

from torch import nn

from normscope.surgery._sites import OURS

# Options of this library's batch norms and what they are in torch's.
OPTIONS: dict[str, Any] = {
    "activation": None,
    "negative_slope": 0.01,
    "inplace": False,
    "statistics": "batch",
    "group_size": None,
    "process_group": None,
    "renorm": None,
    "accumulate": 1,
    "on_bad_update": "track",
    "unbiased_variance": True,
    "float32_statistics": False,
    "use_running": None,
    "update_statistics": True,
}


def inherited(old: Any, asked: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the options of a batch norm of this library that the new one keeps, and say which it does not."""
    if type(old) not in OURS:
        group = getattr(old, "process_group", None)
        return ({"process_group": group} if asked.get("statistics") == "sync" and group is not None else {}), ""
    kept = {name: getattr(old, name) for name in OPTIONS if name not in asked}
    lost = []
    statistics = asked.get("statistics", "batch")
    tracks = asked.get("track_running_stats", old.track_running_stats)
    activation = asked.get("activation", old.activation)
    applies = {
        "group_size": statistics == "ghost",
        "process_group": statistics in ("sync", "renorm"),
        "renorm": statistics == "renorm",
        "use_running": tracks or old.use_running is not True,
        "inplace": statistics == "batch" and activation != "relu",
    }
    for name, does in applies.items():
        if not does and kept.get(name, OPTIONS[name]) != OPTIONS[name]:
            lost.append(name)
            del kept[name]
    return kept, f"dropped, as it does not apply to {statistics} statistics: {', '.join(lost)}" if lost else ""


def not_in(old: Any, new: nn.Module) -> str:
    """Say which options of a batch norm of this library its successor does not have."""
    if type(old) not in OURS or type(new) in OURS:
        return ""
    lost = [n for n, usual in OPTIONS.items() if getattr(old, n) != usual and n != "negative_slope"]
    if old.frozen:
        lost = [n for n in lost if n not in ("use_running", "update_statistics")]
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
