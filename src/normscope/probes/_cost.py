"""What the readings of costly probes cost, told before the first of them."""

import logging
from collections.abc import Sequence

from normscope.probes._probe import AbstractProbe

_DEAR = 10.0  # plain training steps a reading


def cost_hint(probes: Sequence[AbstractProbe], every: int) -> str:
    """Say in one line what the readings of dear probes cost; empty if none is dear.

    Args:
        probes: The probes that are read.
        every: At how many steps each of them reads, if it has no schedule of its own.
    """
    told = []
    low_total = high_total = 0.0
    for probe in probes:
        if probe.COST is None or max(probe.COST) <= _DEAR or not probe.replays:
            continue
        low, high = probe.COST
        told.append(f"{probe.CODE} takes as long as {_span(low, high)} plain steps")
        low_total += low / (probe.every or every)
        high_total += high / (probe.every or every)
    if not told:
        return ""
    return (
        f"at each reading {', '.join(told)}; with this schedule training takes {_span(1 + low_total, 1 + high_total)} "
        "times as long (every= makes readings rarer)"
    )


def say_cost(probes: Sequence[AbstractProbe], every: int) -> None:
    """Log the hint, if there is anything to say."""
    hint = cost_hint(probes, every)
    if hint:
        logging.getLogger("normscope").warning("normscope: %s", hint)


def _span(low: float, high: float) -> str:
    low_text, high_text = f"{low:.3g}", f"{high:.3g}"
    return low_text if low_text == high_text else f"{low_text} to {high_text}"
