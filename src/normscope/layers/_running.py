"""The running statistics of a batch norm: where they are kept, when they move, and which updates are refused."""

import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from normscope._errors import NonFiniteError, UsageError
from normscope.ops import Moments
from normscope.ops.recomputation import in_backward, is_recomputation, snapshot
from normscope.ops.statistics import wide
from normscope.ops.track import accumulate, is_sound, share_of_batch, track
from normscope.ops.ways.choose import is_written_out


class Recorder:
    """Stands in a layer while its statistics are recorded: each forward adds a mean and a biased variance."""

    def __init__(self) -> None:
        self.statistics: list[tuple[Tensor, Tensor]] = []


class Given:
    """Stands in a layer while its statistics are given: each forward takes the next, and the last leads to the first.

    So a layer that is used several times in a network has its own statistics at every use.
    """

    def __init__(self, statistics: list[tuple[Tensor, Tensor]]) -> None:
        self.statistics = statistics
        self.uses = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the statistics of the use that is due."""
        self.uses += 1
        return self.statistics[(self.uses - 1) % len(self.statistics)]


class AbstractRunningStatistics(_BatchNorm):
    """Keeps the running statistics: torch's buffers and one more for accumulation. Only this class changes them."""

    # The given statistics of a forward, and the running ones before the last update: set in passing, never saved.
    _population: Recorder | Given | None = None
    _before: tuple[Tensor, Tensor, Tensor] | None = None
    pending: Tensor | None

    if TYPE_CHECKING:  # the options, which BatchNormOptions declares

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    @property
    def frozen(self) -> bool:
        """Whether the running statistics are used always and never moved."""
        return self.use_running is True and not self.update_statistics

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        if frozen and self.running_mean is None:
            raise UsageError("a layer without running statistics has none to freeze: use track_running_stats=True")
        self.use_running: bool | None = True if frozen else None
        self.update_statistics: bool = not frozen

    def reset_running_stats(self) -> None:
        """Forget all batches; a frozen layer does not, so that ``torch.optim.swa_utils.update_bn`` passes it by."""
        if self.frozen:
            return
        super().reset_running_stats()
        pending = self._buffers.get("pending")
        if pending is not None:
            pending.zero_()

    def reset_parameters(self) -> None:
        """Forget all batches, and put the gain to 1 and the shift to 0."""
        self.reset_running_stats()
        for values, start in ((self.weight, 1.0), (self.bias, 0.0)):
            if values is not None:
                torch.nn.init.constant_(values, start)

    def _make_buffers(self) -> None:
        """Add the buffers that the options need."""
        pending = None
        if self.accumulate > 1 and self.running_mean is not None:
            kept = wide(self.running_mean.dtype)
            pending = torch.zeros(5, self.num_features, dtype=kept, device=self.running_mean.device)
        self.register_buffer("pending", pending, persistent=False)
        if self.float32_statistics and self.running_mean is not None:
            assert self.running_var is not None
            self.running_mean = self.running_mean.to(wide(self.running_mean.dtype))
            self.running_var = self.running_var.to(wide(self.running_var.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Module:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name in ("running_mean", "running_var", "pending"):
            old, new = before.get(name), self._buffers.get(name)
            if old is None or new is None or not (self.float32_statistics or name == "pending"):
                continue
            if new.dtype != old.dtype and wide(new.dtype) != new.dtype:
                self._buffers[name] = old.to(device=new.device, dtype=wide(new.dtype))
        return self

    def _running_before(self, moves: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the running mean and variance and their number of updates, from before this forward's update.

        So also when checkpointing runs the forward again.

        Args:
            moves: Whether this forward updates them.
        """
        mean, var, seen = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean is not None
        assert var is not None
        assert seen is not None
        if not moves:
            return mean, var, seen
        if not is_written_out() and in_backward():
            return self._before or (mean, var, seen)
        before = snapshot(mean), snapshot(var), snapshot(seen)
        if not is_written_out():
            self._before = before
        return before

    def _update(self, moments: Moments) -> None:
        """Move the running statistics toward a batch, unless the options or the numbers are against it."""
        running_mean, running_var, seen = self.running_mean, self.running_var, self.num_batches_tracked
        assert running_mean is not None
        again = is_recomputation(running_mean)
        if again is True:
            return
        _refuse_unstacked(running_mean, moments)
        where: bool | Tensor = True if again is False else torch.logical_not(torch.as_tensor(again))
        if is_written_out():
            sound = None
            if self.on_bad_update != "track":
                sound = is_sound(moments)
            elif isinstance(moments.count, Tensor):
                sound = (moments.count > 1).all()
            if sound is not None:
                where = sound if where is True else sound & where
        elif isinstance(moments.count, Tensor) and not bool((moments.count > 1).all()):
            if bool((moments.count > 0).any()):
                self._refuse("a channel without values", "running statistics left as they were")
            return
        elif self.on_bad_update != "track" and not bool(is_sound(moments)):
            self._refuse("a batch that is not finite", "running statistics left as they were")
            return
        if self.accumulate > 1:
            assert self.pending is not None
            moments, where = accumulate(self.pending, moments, self.accumulate, where)
            if not is_written_out():
                if not bool(where):
                    return
                where = True
        share = share_of_batch(self.momentum, seen, moments.mean.dtype)
        var = moments.variance(unbiased=self.unbiased_variance)
        track(running_mean, running_var, moments.mean + moments.low, var, share, where)
        if seen is not None:
            seen.add_(1 if where is True else torch.as_tensor(where).to(seen.dtype))

    def _refuse(self, cause: str, consequence: str) -> None:
        """Say that an update was refused, as ``on_bad_update`` asks: not at all, by a warning or by an error."""
        if self.on_bad_update in ("track", "skip"):
            return
        if self.on_bad_update == "raise":
            raise NonFiniteError(
                f"{_name_of(self)}: refused an update of the running statistics by {cause}: look at its input"
            )
        warnings.warn(f"{_name_of(self)}: {cause}; {consequence}", stacklevel=2)


def _refuse_unstacked(running_mean: Tensor, moments: Moments) -> None:
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return
    batched = torch._C._functorch.is_batchedtensor
    if batched(moments.mean) and not batched(running_mean):
        raise UsageError(
            "vmap over the batches of one batch norm would give one running statistic many values: stack the buffers "
            "(torch.func.stack_module_state), or set update_statistics=False"
        )


def _name_of(layer: Module) -> str:
    """Return the path of a layer in the model that is running it, or else how it shows itself.

    A layer does not know its model. But who called it does: the outermost module on the stack that contains it.
    """
    path = None
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Module) and owner is not layer:
            path = next((path for path, module in owner.named_modules() if module is layer), path)
        frame = frame.f_back  # type: ignore[assignment]
    return f"layer '{path}'" if path else repr(layer)
