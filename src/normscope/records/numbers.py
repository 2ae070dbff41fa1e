"""Numbers as people read them."""

import math

UNBOUNDED = "no bound"
UNMEASURED = "not measured"


def number(value: float, decimals: int | None = None) -> str:
    """Write a number for reading.

    Args:
        value: Any float.
        decimals: Digits after the point; None keeps three significant ones.

    Returns:
        Fixed notation between 1e-3 and 1e5, else powers of ten; a true minus sign; ``no bound`` for infinities.
    """
    if math.isnan(value):
        return UNMEASURED
    if math.isinf(value):
        return UNBOUNDED
    size = abs(value)
    if size and not 1e-3 <= size < 1e5:
        text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    elif decimals is None:
        text = f"{value:.{decimals_for(size, 3)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{value:.{decimals}f}"
        text = text.lstrip("-") if float(text) == 0 else text
    return text.replace("e-", "e−").replace("-", "−") if text.startswith("-") or "e-" in text else text


def decimals_for(size: float, digits: int) -> int:
    """Return the decimals that show ``digits`` significant digits of a positive size."""
    return max(0, digits - 1 - math.floor(math.log10(size))) if size else 0


def counted(count: int, noun: str, plural: str = "") -> str:
    """Write a count with its noun: ``"1 layer"``, ``"2 layers"``; a verb may follow the noun in both forms."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"
