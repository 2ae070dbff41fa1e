r"""Layer normalization (Ba, Kiros & Hinton, 2016)."""

import torch
from torch import Tensor

from normscope.layers._layer import AbstractLayer
from normscope.ops import layer_norm


class LayerNorm(AbstractLayer, torch.nn.LayerNorm):
    r"""Layer normalization: each sample by itself, over its last axes.

    ## Formula
    $y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$, a $\gamma$ and a $\beta$ for each
    element of ``normalized_shape``.

    ## Statistics
    Mean and biased variance over the axes of ``normalized_shape``, in training and outside it: a sample's output does
    not depend on the others. float32 or wider whatever the input, and right where a mean is large beside its standard
    deviation.

    ## Invariances
    Adding a constant to a sample, and scaling a sample by a positive number while its variance is large beside ``eps``.
    Scaling or shifting one channel alone changes the output. Permuting the elements of a sample permutes the output
    where there is no gain and shift.

    A ``torch.nn.LayerNorm`` with the same arguments, state dict and numbers.

    Args:
        normalized_shape: Sizes of the last axes, whose values share one mean and one variance.
        eps: Added to the variance, in squared units of the input.
        elementwise_affine: Whether there is a gain (``weight``) to learn.
        bias: Whether there is a shift (``bias``) too.
        device: Where parameters live.
        dtype: Their type.
    """

    CODE = "layer_norm"
    SOURCES = ("arXiv:1607.06450 section 3",)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each sample.

        Args:
            input: Values ``(*, normalized_shape)``.

        Returns:
            The normalized values in the type and shape of ``input``.

        Raises:
            ShapeError: The last axes are not of ``normalized_shape``.
        """
        if not isinstance(input, Tensor):
            return self.recorded(input)
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
