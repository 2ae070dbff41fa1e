"""What is raised where tensors do not fit together."""

from normscope._errors import UsageError


class ShapeError(UsageError, ValueError):
    """A tensor has a shape that cannot be normalized; a ValueError too, as torch raises it."""
