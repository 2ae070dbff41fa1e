"""What lazy batch norms share: they learn their number of channels from their first input."""

from typing import Any

import torch
from torch.nn.modules.batchnorm import _LazyNormBase
from torch.nn.parameter import is_lazy

from normscope.layers._norm import AbstractBatchNorm


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
        **options: Any,
    ) -> None:
        super().__init__(eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        self._set_options(**options)

    def initialize_parameters(self, input: torch.Tensor) -> None:
        """Take the number of channels from the first input."""
        waiting = self.has_uninitialized_params()
        super().initialize_parameters(input)
        if waiting:
            self._make_buffers()

    def reset_running_stats(self) -> None:
        """Forget all batches, if there is anything to forget in."""
        if self.running_mean is None or not is_lazy(self.running_mean):
            super().reset_running_stats()
