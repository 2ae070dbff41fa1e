"""Batch norms that learn their number of channels from their first input."""

from typing import Any, Unpack

import torch
from torch.nn.modules.batchnorm import _LazyNormBase
from torch.nn.parameter import is_lazy

from normscope.layers._batch_norm import AbstractBatchNorm
from normscope.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normscope.layers.options import BatchNormKeywords, BatchNormOptions


class AbstractLazyBatchNorm(_LazyNormBase, AbstractBatchNorm):
    """Becomes the batch norm that it stands for at its first forward."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        **options: Unpack[BatchNormKeywords],
    ) -> None:
        super().__init__(eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        chosen = BatchNormOptions.asked(type(self), **options)
        chosen.check(track_running_stats=track_running_stats, eps=eps)
        self._take(chosen)

    def initialize_parameters(self, input: torch.Tensor, *_: Any, **__: Any) -> None:
        """Take the number of channels from the first input; a mask or lengths given with it say nothing of them."""
        waiting = self.has_uninitialized_params()
        super().initialize_parameters(input)
        if waiting:
            self._make_buffers()

    def reset_running_stats(self) -> None:
        """Forget all batches, if there is anything to forget in."""
        if self.running_mean is None or not is_lazy(self.running_mean):
            super().reset_running_stats()


class LazyBatchNorm1d(AbstractLazyBatchNorm, torch.nn.LazyBatchNorm1d):
    r"""Batch normalization of vectors or sequences ``(N, C)`` or ``(N, C, L)`` with channels as they come.

    ## Formula
    That of ``BatchNorm1d``, which the layer is from its first forward on, with ``C`` of that input.

    ## Statistics
    As there.

    ## Invariances
    As there.

    Args:
        eps: Added to the variance, in squared units of the input.
        momentum: Share of the newest batch in the running statistics; None for the average over all batches.
        affine: Whether there are a gain (``weight``) and a shift (``bias``) to learn.
        track_running_stats: Whether running statistics are kept; without them each batch has its own, in eval too.
        device: Where parameters and buffers live.
        dtype: Their type.
        bias: With ``affine``, whether there is a shift.
        **options: Those of ``BatchNorm1d``.
    """

    CODE = "lazy_batch_norm_1d"
    SOURCES = ("arXiv:1502.03167 section 3",)
    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(AbstractLazyBatchNorm, torch.nn.LazyBatchNorm2d):
    r"""Batch normalization of images ``(N, C, H, W)`` with channels as they come.

    ## Formula
    That of ``BatchNorm2d``, which the layer is from its first forward on, with ``C`` of that input.

    ## Statistics
    As there.

    ## Invariances
    As there.

    Args:
        eps: Added to the variance, in squared units of the input.
        momentum: Share of the newest batch in the running statistics; None for the average over all batches.
        affine: Whether there are a gain (``weight``) and a shift (``bias``) to learn.
        track_running_stats: Whether running statistics are kept; without them each batch has its own, in eval too.
        device: Where parameters and buffers live.
        dtype: Their type.
        bias: With ``affine``, whether there is a shift.
        **options: Those of ``BatchNorm2d``.
    """

    CODE = "lazy_batch_norm_2d"
    SOURCES = ("arXiv:1502.03167 section 3",)
    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(AbstractLazyBatchNorm, torch.nn.LazyBatchNorm3d):
    r"""Batch normalization of volumes ``(N, C, D, H, W)`` with channels as they come.

    ## Formula
    That of ``BatchNorm3d``, which the layer is from its first forward on, with ``C`` of that input.

    ## Statistics
    As there.

    ## Invariances
    As there.

    Args:
        eps: Added to the variance, in squared units of the input.
        momentum: Share of the newest batch in the running statistics; None for the average over all batches.
        affine: Whether there are a gain (``weight``) and a shift (``bias``) to learn.
        track_running_stats: Whether running statistics are kept; without them each batch has its own, in eval too.
        device: Where parameters and buffers live.
        dtype: Their type.
        bias: With ``affine``, whether there is a shift.
        **options: Those of ``BatchNorm3d``.
    """

    CODE = "lazy_batch_norm_3d"
    SOURCES = ("arXiv:1502.03167 section 3",)
    cls_to_become = BatchNorm3d
