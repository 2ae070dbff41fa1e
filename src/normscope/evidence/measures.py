"""Small measures that several rules take."""

from collections.abc import Mapping

from torch.nn import Module

from normscope import layers


def of_this_library(module: Module) -> bool:
    """Whether a batch norm is this library's: it keeps what it normalized by, and takes data about their mean."""
    return isinstance(module, (layers.BatchNorm1d, layers.BatchNorm2d, layers.BatchNorm3d))


def innermost(by_site: Mapping[str, float]) -> dict[str, float]:
    """Return the values of sites that hold no other site: a model with a parameter of its own is no layer among many.

    Args:
        by_site: Values by qualified name.
    """
    holders = {
        name[:end] for name in by_site for end in [0, *(i for i, char in enumerate(name) if char == ".")] if name
    }
    return {site: value for site, value in by_site.items() if site not in holders}
