"""Estimates and verdicts with the values that a test names, and usual values otherwise."""

from normscope.records import Estimate, Outcome, Verdict


def estimate(low: float, high: float, point: float | None = None, **rest) -> Estimate:
    fields = {"level": 0.95, "n": 10, "method": "paired t"} | rest
    return Estimate((low + high) / 2 if point is None else point, low, high, **fields)


def verdict(outcome: Outcome, p: float | None, **rest) -> Verdict:
    fields = {
        "study": "demo",
        "claim": "It is so.",
        "outcome": outcome,
        "endpoint": "loss",
        "effect": estimate(0.3, 0.5),
        "margin": 0.1,
        "reason": "The interval says so.",
        "p_value": p,
    } | rest
    return Verdict(**fields)
