"""What all layers share: each has a page."""

from torch.nn import Module

from normscope._unit import Unit


class AbstractLayer(Module, Unit):
    """A torch module with a page."""

    HEADINGS = ("Formula", "Statistics", "Invariances")
