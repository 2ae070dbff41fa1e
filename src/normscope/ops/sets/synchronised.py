"""The batches of all processes of a group, of any sizes: on the CPU over gloo as on GPUs over NCCL."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from normscope.ops.moments import Moments, merge_all
from normscope.ops.sets.batch import BATCH, StatisticsSet
from normscope.ops.statistics import channel_axes


class _AllReduce(Function):
    """The sum over processes; each process's share of its cotangent is the sum of all cotangents.

    So backward and tangent are the operation itself, and it can be differentiated as often as one likes. (Torch's own
    functional all-reduce has a forward derivative that is silently zero.)
    """

    @staticmethod
    def forward(t: Tensor, group: Any) -> Tensor:
        total = t.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return all_reduce(g, ctx.group), None

    @staticmethod
    def jvp(ctx: Any, t: Tensor, _: Any) -> Tensor:
        return all_reduce(t, ctx.group)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], t: Tensor, group: Any) -> tuple[Tensor, Any]:
        return all_reduce(t, group), in_dims[0]


class _AllGather(Function):
    """The tensors of all processes, stacked; a constant to autograd. A Function so that vmap can pass through it."""

    @staticmethod
    def forward(t: Tensor, group: Any) -> Tensor:
        t = t.contiguous()
        parts = [torch.empty_like(t) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, t, group=group)
        return torch.stack(parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], t: Tensor, group: Any) -> tuple[Tensor, int]:
        return all_gather(t.movedim(in_dims[0], 0), group), 1


def all_gather(t: Tensor, group: Any) -> Tensor:
    """Stack the tensors of all processes of a group.

    Args:
        t: The same shape in every process; a constant to autograd.
        group: The process group, or None for all processes.

    Returns:
        The tensors ``(processes, *)`` in the order of ranks, the same in every process.
    """
    if torch.compiler.is_compiling():
        from torch.distributed import _functional_collectives as functional

        return functional.all_gather_tensor(t.unsqueeze(0), 0, _whole(group))
    return _AllGather.apply(t, group)


def all_reduce(t: Tensor, group: Any) -> Tensor:
    """Sum a tensor over the processes of a group, differentiably.

    Args:
        t: The same shape in every process.
        group: The process group, or None for all processes.

    Returns:
        The sum, the same in every process.
    """
    if torch.compiler.is_compiling():
        from torch.distributed import _functional_collectives as functional

        return functional.wait_tensor(functional.all_reduce(t, "sum", _whole(group)))
    return _AllReduce.apply(t, group)


class Synchronised(StatisticsSet):
    """The values of a channel in the batches of all processes.

    Every process of the group must take part, with a batch of any size, also of none; each must run the backward, if
    any does. The gradient at the input is that of the sum of the losses of all processes; those at gain and shift are
    of this process's loss alone, to be summed or averaged with the other parameters' as DistributedDataParallel does.

    Args:
        group: The process group, or None for all processes.
        within: Which values of this process's batch belong to the set: all, unless masked.
    """

    def __init__(self, group: Any = None, within: StatisticsSet = BATCH) -> None:
        self.group = group
        self.within = within

    def keep(self, t: Tensor) -> Tensor:
        """Return ``t`` with zeros for the elements that do not belong to the set."""
        return self.within.keep(t)

    def moments(self, x: Tensor) -> Moments:
        """Return the moments of all processes together, merged exactly from those of each: one exchange."""
        # float64 holds a float32 mean and its low part in one number, and any count.
        if x.numel():
            own = self.within.moments(x).detach()
            mean = own.mean.double() + own.low.double()
            sent = torch.stack([torch.zeros_like(mean) + own.count, mean, own.m2.double()])
        else:
            sent = torch.stack([x.sum(channel_axes(x)).double()] * 3)  # zeros, under vmap as many as there are inputs
        gathered = all_gather(sent, self.group)
        count, mean, m2 = gathered.unbind(1)
        every = count.sum(0)
        pooled = merge_all(Moments(count, mean, torch.zeros_like(mean), m2))
        dtype = torch.promote_types(x.dtype, torch.float32)
        high = pooled.mean.to(dtype)
        low = ((pooled.mean - high) + pooled.low).to(dtype)
        return Moments(every.to(dtype), high, low, pooled.m2.to(dtype))

    def average(self, t: Tensor, count: int | Tensor) -> Tensor:
        """Average over the batches of all processes: one exchange."""
        total = all_reduce(self.within.keep(t).sum(channel_axes(t)), self.group)
        return total / (count.clamp(min=1) if isinstance(count, Tensor) else count)


def _whole(group: Any) -> Any:
    return dist.group.WORLD if group is None else group


def is_synchronising(group: Any) -> bool:
    """Say whether there is more than one process to synchronise with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1
