"""What is raised where tensors or numbers do not fit an operation."""

import math
from collections.abc import Sequence

from torch import Tensor

from normscope._errors import UsageError


class ShapeError(UsageError, ValueError, RuntimeError):
    """A tensor has a shape or type that cannot be normalized.

    Torch raises a ValueError for some of these (too few axes, one value a channel) and a RuntimeError for others (not
    as many channels as the layer has, integers): this is both, so that whoever catches either has it.
    """


class RangeError(UsageError, ValueError):
    """A number is outside the range in which an operation is defined; a ValueError too, as torch raises it."""


def check_rows(x: Tensor, names: Sequence[str], rows: Sequence[Tensor | None]) -> None:
    """Refuse parameters that do not have one value a channel: kernels, torch's too, go by addresses.

    Args:
        x: Values ``(N, C, *)``.
        names: Of the parameters, for the message.
        rows: The parameters, each ``(C,)`` or None.

    Raises:
        ShapeError: One has another shape.
    """
    for values in rows:
        if values is not None and values.shape != x.shape[1:2]:
            raise ShapeError(_misfit(x, names, rows))


def check_channels(x: Tensor, names: Sequence[str], rows: Sequence[Tensor | None]) -> None:
    """Refuse values without an axis of channels or not of a floating type, and parameters as ``check_rows`` does."""
    if x.ndim < 2 or not x.is_floating_point():
        raise ShapeError(f"expected floating values (N, C, *), got {x.dtype} of shape {tuple(x.shape)}")
    check_rows(x, names, rows)


def check_trailing(x: Tensor, normalized_shape: Sequence[int], *parameters: Tensor | None) -> int:
    """Refuse values, or parameters, whose last axes are not of a shape.

    Args:
        x: Values ``(*, normalized_shape)``.
        normalized_shape: The shape.
        *parameters: Each of that shape, or None.

    Returns:
        How many sets of ``normalized_shape`` there are in ``x``.

    Raises:
        ShapeError: The last axes of ``x``, or a parameter, are not of the shape; ``x`` is not floating.
    """
    shape = tuple(normalized_shape)
    if not shape or tuple(x.shape[-len(shape) :]) != shape or not x.is_floating_point():
        raise ShapeError(f"expected floating values whose last axes are {shape}, got {x.dtype} {tuple(x.shape)}")
    for values in parameters:
        if values is not None and tuple(values.shape) != shape:
            raise ShapeError(f"expected a weight and bias of shape {shape}, got {tuple(values.shape)}")
    return math.prod(x.shape[: -len(shape)])


def _misfit(x: Tensor, names: Sequence[str], rows: Sequence[Tensor | None]) -> str:
    """Name all parameters that do not fit, with their sizes: all of them where it is the input that is wrong."""
    shapes = {name: tuple(v.shape) for name, v in zip(names, rows, strict=True) if v is not None}
    wrong = {name: shape for name, shape in shapes.items() if shape != x.shape[1:2]}
    *others, last = wrong
    named = f"{', '.join(others)} and {last} should each" if others else f"{last} should"
    sizes = " and ".join(map(str, dict.fromkeys(wrong.values())))
    return (
        f"{named} have one value for each of the {x.shape[1]} channels of an input of shape {tuple(x.shape)}, "
        f"got shape {sizes}"
    )
