"""A statistic with its uncertainty."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A point, the interval around it, and how they were made.

    Attributes:
        point: The estimate, on ``scale``.
        low: Lower end of the interval; ``-inf`` when the data do not bound it.
        high: Upper end of the interval; ``inf`` when the data do not bound it.
        level: Confidence level of the interval, in (0, 1).
        n: Number of independent replicates (seeds) behind it.
        method: Name of the method that made the interval (``"paired t"``, ``"BCa bootstrap"``, ...).
        scale: What the numbers are: ``"log-ratio"`` (natural logarithm), ``"difference"``, ``"value"``, ``"ratio"``, or
            ``"error"`` (the errors of an identity: the largest, from the smallest to the largest).
        unit: Unit of the numbers in words; ``"points"`` and ``"%"`` are hundredths, ``"per layer"`` follows a ratio.
    """

    point: float
    low: float
    high: float
    level: float
    n: int
    method: str
    scale: str = "difference"
    unit: str = ""
