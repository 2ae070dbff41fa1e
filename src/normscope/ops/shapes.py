"""What is raised where tensors or numbers do not fit an operation."""

from normscope._errors import UsageError


class ShapeError(UsageError, ValueError):
    """A tensor has a shape that cannot be normalized; a ValueError too, as torch raises it."""


class RangeError(UsageError, ValueError):
    """A number is outside the range in which an operation is defined; a ValueError too, as torch raises it."""
