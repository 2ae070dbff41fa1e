"""Pool the moments of what norms are given, over batches and over processes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normscope._errors import DataError, NonFiniteError
from normscope.layers import AbstractBatchNorm
from normscope.ops import Moments, merge, moments_of
from normscope.ops.sets import Masked, mask_of_lengths


@dataclass(frozen=True)
class Pooled:
    """What the data say of one norm's input.

    Attributes:
        moments: Moments per channel in float64; None where there were fewer than two values.
        batches: Batches seen, by all processes together.
        order: The measured norms in order of their first call.
    """

    moments: Moments | None
    batches: int
    order: tuple[str, ...] = ()


class Meter:
    """Records the statistics of one norm's input, and chooses what the norm normalizes by while it is measured.

    Args:
        path: The norm's name.
        module: The norm.
        settled: Whether it normalizes by its running statistics; else by each batch.
    """

    def __init__(self, path: str, module: Any, *, settled: bool) -> None:
        self.path, self.module, self.settled = path, module, settled
        self.moments: Moments | None = None

    def attach(self, order: list[str]) -> None:
        """Hook onto the norm; whoever calls takes the hooks off by restoring the model."""
        self.order = order
        self.module.register_forward_pre_hook(self._look, with_kwargs=True)
        self.module.register_forward_hook(self._after)
        if type(self.module) is nn.SyncBatchNorm:
            # It would wait for the other processes at each forward, and refuses the CPU. Each normalizes by its own.
            vars(self.module)["forward"] = self._locally
        if isinstance(self.module, AbstractBatchNorm):
            # By the batch or by the running statistics alone, and without waiting for other processes either.
            self.module.statistics = "ghost" if self.module.statistics == "ghost" else "batch"
            self.module.process_group = self.module.renorm = None
            self.module.use_running = False if self.module.use_running is False else None
            self.module.update_statistics = False

    def _look(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)).detach()
        if self.path not in self.order:
            self.order.append(self.path)
        module.training = not self.settled
        if x.numel() == 0:
            module.training = False
            return
        # MPS has no float64; there the sums are float32, shifted, with the mean in two parts.
        wide = x if x.device.type == "mps" else x.double()
        found = moments_given(module, wide, args, kwargs, own=wide is not x)
        if found is None:  # it was told what to normalize by
            return
        if not (found.mean.isfinite().all() and found.m2.isfinite().all()):
            raise NonFiniteError(f"{self.path} was given values that are not finite: find where they arise first")
        self.moments = found if self.moments is None else merge(self.moments, found)
        if not enough(found) and not self.settled:  # one value is its own mean: normalize by what was pooled so far
            module.training = False
            if enough(self.moments):
                module.running_mean.copy_(self.moments.mean + self.moments.low)
                module.running_var.copy_(self.moments.variance(unbiased=True))

    def _after(self, module: Any, args: Any, output: Any) -> None:
        module.training = False

    def _locally(self, x: Tensor) -> Tensor:
        m = self.module
        return nn.functional.batch_norm(
            x, m.running_mean, m.running_var, m.weight, m.bias, training=m.training, momentum=0.0, eps=m.eps
        )


def moments_given(
    module: nn.Module,
    x: Tensor,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    own: bool = False,
) -> Moments | None:
    """Return the moments of those values of a norm's input that count for it.

    Args:
        module: The norm; one of this library may be called with a mask or lengths.
        x: Its input, in the type in which to sum.
        args: All arguments of the call.
        kwargs: Those by keyword.
        own: Whether ``x`` is a copy that may be used up.

    Returns:
        The moments; or None if the call said what statistics to normalize by.
    """
    if not isinstance(module, AbstractBatchNorm):
        return moments_of(x, overwrite=own)
    said = dict(zip(("input", "mask", "lengths"), args, strict=False)) | dict(kwargs or {})
    if said.get("population") is not None:
        return None
    mask, lengths = said.get("mask"), said.get("lengths")
    if lengths is not None:
        mask = mask_of_lengths(lengths, x)
    if mask is None:
        return moments_of(x, overwrite=own)
    found = Masked(mask, x).moments(x)
    assert isinstance(found.count, Tensor)
    count = found.count
    if bool((count == count[0]).all()):
        return Moments(int(count[0].item()), found.mean, found.low, found.m2)
    return found


def enough(moments: Moments) -> bool:
    """Say whether every channel has two values at least."""
    return bool((torch.as_tensor(moments.count) > 1).all())


@dataclass
class Step:
    """A pass over the data: where it is, and what came of it."""

    batch: int = 0
    batches: int = 0
    pooled: dict[str, Pooled] = field(default_factory=dict)


@contextmanager
def in_step(model: nn.Module, meters: Mapping[str, Meter]) -> Iterator[Step]:
    """Pool what the block measures over all processes. If one process raises, all raise: the others would hang.

    Raises:
        DataError: No process had a batch, or another process failed.
    """
    step = Step()
    failure: BaseException | None = None
    try:
        yield step
    except BaseException as error:
        failure = error
        if isinstance(error, NonFiniteError):
            failure = NonFiniteError(f"batch {step.batch}: {error}")
    order = next((m.order for m in meters.values() if hasattr(m, "order")), [])
    told = _from_all((repr(failure) if failure else None, step.batches, list(order)))
    if failure is not None:
        raise failure
    failed = [f"{rank}: {what}" for rank, (what, _, _) in enumerate(told) if what]
    if failed:
        raise DataError(f"recalibration failed in another process, {'; '.join(failed)}")
    batches = sum(number for _, number, _ in told)
    if meters and batches == 0:
        raise DataError("the loader gave no batches: there are no statistics to take")
    orders = [seen for _, _, seen in told if seen]
    agreed = tuple(dict.fromkeys(path for seen in orders for path in seen))
    for path, meter in meters.items():
        moments = _pool(meter)
        usable = moments is not None and enough(moments)
        step.pooled[path] = Pooled(moments if usable else None, batches, agreed)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _from_all(mine: Any) -> list[Any]:
    """Return what each process has to say, by rank."""
    if not _distributed():
        return [mine]
    told: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, mine)
    return told


def _pool(meter: Meter) -> Moments | None:
    """Merge one norm's moments over all processes, in the order of ranks: the same bits everywhere."""
    mine = meter.moments
    if not _distributed():
        return mine
    channels = meter.module.num_features
    device = meter.module.running_mean.device
    kind = torch.float32 if device.type == "mps" else torch.float64
    flat = torch.zeros(4 * channels, dtype=kind, device=device)
    if mine is not None:
        count = torch.as_tensor(mine.count, dtype=kind, device=device).expand(channels)
        flat = torch.cat([count, *(v.flatten().to(flat) for v in (mine.mean, mine.low, mine.m2))])
    parts = [torch.empty_like(flat) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, flat)
    pooled: Moments | None = None
    for part in parts:
        counts, mean, low, m2 = part.view(4, channels)
        if counts.any():
            alike = bool((counts == counts[0]).all())
            one = Moments(int(counts[0].item()) if alike else counts, mean, low, m2)
            pooled = one if pooled is None else merge(pooled, one)
    return pooled
