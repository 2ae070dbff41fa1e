"""Statistics of the training data, pooled over batches, and how they are put into the norms."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module

from normscope._errors import NormscopeError
from normscope.evidence.case import Case
from normscope.evidence.noise import noisy_modules, quiet_call
from normscope.evidence.sandbox import sandbox
from normscope.modules.sites import tracking
from normscope.surgery import recalibrate
from normscope.usercode import users_code


@dataclass(frozen=True, slots=True)
class Statistics:
    """Pooled statistics of the norms over training batches, and the state of the buffers beside them.

    Attributes:
        mean: By qualified name the mean of each channel.
        variance: Its unbiased variance.
        shift: Largest distance of the running mean from it, in standard deviations, by channel.
        ratio: Running variance over it, by channel.
        losses: Losses of the batches in that pass: noise off, each norm normalizing by the batch.
    """

    mean: Mapping[str, torch.Tensor]
    variance: Mapping[str, torch.Tensor]
    shift: Mapping[str, torch.Tensor]
    ratio: Mapping[str, torch.Tensor]
    losses: Sequence[float] = ()


def pooled(case: Case, count: int, *, dropout: bool = False, only: Collection[str] | None = None) -> Statistics:
    """Pool the statistics of what each tracking norm is given, over training batches with the others as in training.

    Args:
        case: The set-up.
        count: Over how many batches.
        dropout: Whether dropout and other noise are on.
        only: The norms that normalize by the batch in training; the others do by their running statistics, and have no
            part in the result. Left out, all.

    Raises:
        UsageError: The loader or the loss raises.
    """
    found: dict[str, list[torch.Tensor]] = {}
    noted: list[float] = []
    call = case.loss_fn if dropout else quiet_call(case, noisy_modules(case))

    def noting(model: Any, batch: Any) -> Any:
        loss = call(model, batch)
        noted.append(float(loss.detach() if isinstance(loss, torch.Tensor) else loss))
        return loss

    with sandbox(case):
        norms = {path: module for path, module in tracking(case.model).items() if only is None or path in only}
        before = {path: (module.running_mean.clone(), module.running_var.clone()) for path, module in norms.items()}
        names = None if only is None else list(norms)
        recalibrated(case, case.loader, count, call=noting, dropout=dropout, frozen=True, only=names)
        for path, module in norms.items():
            mean, variance = module.running_mean.double().clone(), module.running_var.double().clone()
            old_mean, old_variance = (part.double() for part in before[path])
            scale = (variance + module.eps).sqrt()
            found[path] = [mean, variance, (mean - old_mean) / scale, old_variance / variance.clamp(min=1e-30)]
    parts = [{path: values[index] for path, values in found.items()} for index in range(4)]
    return Statistics(parts[0], parts[1], parts[2], parts[3], noted)


@torch.no_grad()
def put_statistics(model: Module, statistics: Statistics, *, only: Collection[str] | None = None) -> None:
    """Put pooled statistics into the buffers of the norms, or of some of them by their paths."""
    for path, module in tracking(model).items():
        if path in statistics.mean and (only is None or path in only):
            module.running_mean.copy_(statistics.mean[path])
            module.running_var.copy_(statistics.variance[path])


def recalibrated(
    case: Case, loader: Iterable[Any], count: int, *, call: Callable[..., Any] | None = None, **options: Any
) -> None:
    """Recalibrate a case's model, with options as of ``surgery.recalibrate``; where no norm can be, leave it.

    Raises:
        UsageError: The loader or the loss raises.
    """
    with users_code("measuring statistics over the loader"):
        try:
            recalibrate(case.model, loader, call or case.loss_fn, num_batches=count, **options)
        except NormscopeError as error:
            if "no norm was called" not in str(error) and "two values" not in str(error):
                raise
