r"""Root-mean-square normalization (Zhang & Sennrich, 2019)."""

import torch
from torch import Tensor

from normscope.layers._layer import AbstractLayer
from normscope.ops import rms_norm


class RMSNorm(AbstractLayer, torch.nn.RMSNorm):
    r"""RMS normalization: layer normalization without the mean.

    ## Formula
    $y = \gamma\, x / \sqrt{\langle x^2 \rangle + \epsilon}$, a $\gamma$ for each element of
    ``normalized_shape``.

    ## Statistics
    The mean square over the axes of ``normalized_shape``, in training and outside it: a sample's output does not depend
    on the others. float32 or wider whatever the input.

    ## Invariances
    Scaling a sample by a positive number while its mean square is large beside ``eps``; adding a constant changes the
    output. Permuting the elements of a sample permutes the output where there is no gain.

    A ``torch.nn.RMSNorm`` with the same arguments, state dict and numbers.

    Args:
        normalized_shape: Sizes of the last axes, whose values share one mean square.
        eps: Added to the mean square, in squared units of the input; None for the spacing of float32 (float64 for
            float64 inputs) at 1.
        elementwise_affine: Whether there is a gain (``weight``) to learn.
        device: Where parameters live.
        dtype: Their type.
    """

    CODE = "rms_norm"
    SOURCES = ("arXiv:1910.07467 section 4",)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each sample.

        Args:
            x: Values ``(*, normalized_shape)``.

        Returns:
            The normalized values in the type and shape of ``x``.

        Raises:
            ShapeError: The last axes are not of ``normalized_shape``.
        """
        if not isinstance(x, Tensor):
            return self.recorded(x)
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)
