"""Evaluation with the statistics of the training set instead of a moving average."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normscope.modules.state import traceless


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of (N, classes) ``logits`` whose largest is at the label (N,)."""
    return float((logits.argmax(1) == labels).double().mean())


@contextmanager
def population_statistics(model: nn.Module, x: Tensor, *, samples: int = 1024, batch: int = 256) -> Iterator[None]:
    """Put ``model`` in eval mode with batch-norm statistics re-estimated on training inputs; undo it all at the end.

    The simple average over batches of the mean and of the unbiased variance, with the weights frozen (precise batch
    norm, Wu & Johnson 2021, section 3). Noise and dropout rest meanwhile.

    Args:
        model: The network; left as it was.
        x: Training inputs (N, ...).
        samples: Number of inputs used, all if there are fewer.
        batch: Inputs of one batch; a last batch of fewer is left out, so that every batch has the same weight.
    """
    normalizers: list[_BatchNorm] = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    with traceless(model, streams=False):
        model.eval()
        if normalizers:
            for normalizer in normalizers:
                normalizer.train()
                normalizer.reset_running_stats()
                normalizer.momentum = None  # the cumulative average
            batch = min(batch, len(x))
            used = min(samples, len(x)) // batch * batch
            with torch.no_grad():
                for chunk in x[:used].split(batch):
                    model(chunk)
            for normalizer in normalizers:
                normalizer.eval()
        yield
