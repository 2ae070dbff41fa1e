"""What is raised where tensors or numbers do not fit an operation."""

from collections.abc import Sequence

from torch import Tensor

from normscope._errors import UsageError


class ShapeError(UsageError, ValueError):
    """A tensor has a shape that cannot be normalized; a ValueError too, as torch raises it."""


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
    for name, values in zip(names, rows, strict=True):
        if values is not None and values.shape != x.shape[1:2]:
            raise ShapeError(
                f"{name} should have one value for each of the {x.shape[1]} channels of an input of shape "
                f"{tuple(x.shape)}, got shape {tuple(values.shape)}"
            )


def check_channels(x: Tensor, names: Sequence[str], rows: Sequence[Tensor | None]) -> None:
    """Refuse values without an axis of channels or not of a floating type, and parameters as ``check_rows`` does."""
    if x.ndim < 2 or not x.is_floating_point():
        raise ShapeError(f"expected floating values (N, C, *), got {x.dtype} of shape {tuple(x.shape)}")
    check_rows(x, names, rows)
