"""What layers share: each has a page; and what batch norms of one, two and three dimensions share: everything."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from normscope._errors import UsageError
from normscope._unit import Unit
from normscope.layers import _running
from normscope.layers._group import GroupOfProcesses
from normscope.ops import batch_norm
from normscope.ops.recomputation import in_backward
from normscope.ops.sets import Renorm
from normscope.ops.shapes import RangeError
from normscope.ops.statistics import wide
from normscope.ops.track import share_of_batch
from normscope.ops.ways.choose import is_written_out, plan_at_once
from normscope.ops.ways.kernel import fused_at_once

Activation = Literal["relu", "leaky_relu"]
Statistics = Literal["batch", "ghost", "sync", "renorm"]
OnBadUpdate = Literal["track", "skip", "warn", "raise"]

_CHOICES = {
    "activation": (None, "relu", "leaky_relu"),
    "statistics": ("batch", "ghost", "sync", "renorm"),
    "on_bad_update": ("track", "skip", "warn", "raise"),
    "use_running": (None, True, False),
}


class AbstractLayer(Module, Unit):
    """A torch module with a page."""

    HEADINGS = ("Formula", "Statistics", "Invariances")


class AbstractBatchNorm(AbstractLayer, _BatchNorm):
    """Torch's parameters, buffers and state dict; the numbers come from ``normscope.ops``.

    Without options it does what torch's does, but for two repairs: a forward that is run again inside a backward
    (activation checkpointing) does not move the running statistics a second time, and a backward through statistics
    that have moved since its forward is right.

    Args:
        num_features: Channels ``C``.
        eps: Added to the variance, in squared units of the input.
        momentum: Share of the newest batch in the running statistics; None for the average over all batches.
        affine: Whether there are a gain (``weight``) and a shift (``bias``) to learn.
        track_running_stats: Whether running statistics are kept; without them each batch has its own, in eval too.
        device: Where parameters and buffers live.
        dtype: Their type.
        bias: With ``affine``, whether there is a shift besides the gain.
        activation: Applied to the output, over its memory: ``"relu"``, ``"leaky_relu"`` or None.
        negative_slope: Of leaky ReLU.
        inplace: Whether the output may overwrite the input, in training; the backward takes what it needs from the
            output, so that one tensor less is kept. For no activation and leaky ReLU, over the batch. In float32 its
            gradients are right to about 3e-7 of their largest. Where a gain is below 1e-6, or a shift beyond 8 gains,
            the layer does it the usual way; more in `normscope.ops.ways.in_place`.
        statistics: Whose statistics normalize in training: those of the whole ``"batch"``; of a ``"ghost"`` batch,
            ``group_size`` consecutive samples; of the batches of all processes, ``"sync"``; or of the batch, corrected
            toward the running ones, ``"renorm"``.
        group_size: Samples of a ghost batch; the last has what is left over, unless that is one value a channel.
        process_group: With ``"sync"``, the processes; None for all. With ``"renorm"``, given, the batch is theirs.
        renorm: How far renormalization corrects, and from which update on.
        accumulate: Batches that are pooled for one update of the running statistics: micro-batches of one step.
        on_bad_update: What to do about an update that is not finite or comes of one value a channel: ``"track"`` it,
            as torch does (and refuse one value a channel); or leave the running statistics as they are and ``"skip"``
            it, ``"warn"`` or ``"raise"``, naming the layer. One value a channel is then normalized by the running
            statistics. Where no value can be looked at (compiled, torch.func) warn and raise are skip.
        unbiased_variance: Whether the variance that is tracked has n - 1 in the denominator, as in torch.
        float32_statistics: Whether the running statistics stay float32 when the layer is made ``half`` or
            ``bfloat16``. In bfloat16 they stop moving short of their goal when the momentum is small.
        use_running: Whether the running statistics normalize: None for in eval only, as in torch; True for always;
            False for never.
        update_statistics: Whether training moves the running statistics. With ``use_running=True`` and without
            updates the layer is *frozen*, whatever mode it is put in; so it is after ``layer.frozen = True``.

    Raises:
        UsageError: Options that are not there, or do not go together.
    """

    # The given statistics of a forward, and the running ones before the last update: set in passing, never saved.
    _population: "_running.Recorder | _running.Given | None" = None
    _before: tuple[Tensor, Tensor, Tensor] | None = None
    pending: Tensor | None
    _group: GroupOfProcesses | None = None
    # Torch's constructor resets the statistics before there are options.
    use_running: bool | None = None
    update_statistics: bool = True

    def __init__(
        self,
        num_features: int,
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
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        self._set_options(**options)
        self._make_buffers()

    def _set_options(
        self,
        *,
        activation: Activation | None = None,
        negative_slope: float = 0.01,
        inplace: bool = False,
        statistics: Statistics = "batch",
        group_size: int | None = None,
        process_group: Any = None,
        renorm: Renorm | None = None,
        accumulate: int = 1,
        on_bad_update: OnBadUpdate = "track",
        unbiased_variance: bool = True,
        float32_statistics: bool = False,
        use_running: bool | None = None,
        update_statistics: bool = True,
    ) -> None:
        self.activation = activation
        self.negative_slope = negative_slope
        self.inplace = inplace
        self.statistics = statistics
        self.group_size = group_size
        self.process_group = process_group
        self.renorm = Renorm() if renorm is None and statistics == "renorm" else renorm
        self.accumulate = accumulate
        self.on_bad_update = on_bad_update
        self.unbiased_variance = unbiased_variance
        self.float32_statistics = float32_statistics
        self.use_running = use_running
        self.update_statistics = update_statistics
        self._check_options()

    def _make_buffers(self) -> None:
        """Add what the options need beside torch's buffers."""
        pending = None
        if self.accumulate > 1 and self.running_mean is not None:
            kept = wide(self.running_mean.dtype)
            pending = torch.zeros(5, self.num_features, dtype=kept, device=self.running_mean.device)
        self.register_buffer("pending", pending, persistent=False)
        if self.float32_statistics and self.running_mean is not None:
            assert self.running_var is not None
            self.running_mean = self.running_mean.to(wide(self.running_mean.dtype))
            self.running_var = self.running_var.to(wide(self.running_var.dtype))

    def _check_options(self) -> None:
        if self.eps < 0:
            raise RangeError(f"eps is added to a variance: give at least 0, not {self.eps}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} is one of {choices}: got {getattr(self, name)!r}")
        tracks = self.track_running_stats
        refusals = {
            "statistics='ghost' needs group_size, at least 1": self.statistics == "ghost"
            and not _whole(self.group_size),
            "group_size is for statistics='ghost'": self.statistics != "ghost" and self.group_size is not None,
            "process_group is for statistics='sync' or 'renorm'": self.process_group is not None
            and self.statistics not in ("sync", "renorm"),
            "renorm is for statistics='renorm'": self.renorm is not None and self.statistics != "renorm",
            "statistics='renorm' needs track_running_stats=True": self.statistics == "renorm" and not tracks,
            "use_running=True needs track_running_stats=True": self.use_running is True and not tracks,
            "accumulate is a number of batches, at least 1": not _whole(self.accumulate),
            "inplace=True cannot be with relu, which cannot be inverted: use leaky_relu": self.inplace
            and self.activation == "relu",
            "inplace=True with leaky_relu needs a positive negative_slope": self.inplace
            and self.activation == "leaky_relu"
            and self.negative_slope <= 0,
            "inplace=True is for statistics='batch'": self.inplace and self.statistics != "batch",
        }
        for reason, refused in refusals.items():
            if refused:
                raise UsageError(reason)

    @property
    def process_group(self) -> Any:
        """The processes that statistics are synchronised over; None for all. Copies share it; pickles have its ranks.

        Raises:
            UsageError: The layer was unpickled among connected processes and was of some of them: set the group anew.
        """
        return None if self._group is None else self._group.found()

    @process_group.setter
    def process_group(self, group: Any) -> None:
        self._group = None if group is None else GroupOfProcesses(group)

    @property
    def frozen(self) -> bool:
        """Whether the running statistics are used always and never moved."""
        return self.use_running is True and not self.update_statistics

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        if frozen and self.running_mean is None:
            raise UsageError("a layer without running statistics has none to freeze: use track_running_stats=True")
        self.use_running, self.update_statistics = (True, False) if frozen else (None, True)

    def forward(
        self,
        input: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        population: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Normalize each channel.

        Args:
            input: Values ``(N, C, *)``.
            mask: True for values that count, ``(N, *)``, ``(N, 1, *)`` or ``(N, C, *)``. What does not is no part of
                any statistic or gradient, may be NaN, and is zero in the output.
            lengths: In place of a mask: how many positions of each sample count, along the last axis ``(N,)``.
            population: Mean and biased variance ``(C,)`` to normalize by, in any mode: differentiated, not tracked.

        Returns:
            The normalized values in the type and shape of ``input``.

        Raises:
            ShapeError: In training, one value a channel; or not one channel for each feature.
            ValueError: Not the number of axes that this layer takes.
            NonFiniteError: An update was refused, with ``on_bad_update="raise"``.
        """
        self._check_input_dim(input)
        plain = (
            mask is None
            and lengths is None
            and population is None
            and self._population is None
            and self.use_running is None
            and (not self.training or self._trains_as_torch())
        )
        if plain and (y := self._forward_at_once(input)) is not None:
            return y
        if plain and not is_written_out():
            return self._forward_as_torch(input)
        y, activated = _running.forward(self, input, mask, lengths, population)
        if self.activation is None or activated:
            return y
        own = y is not input and not is_written_out()  # else it is not ours to overwrite
        if self.activation == "relu":
            return torch.relu_(y) if own else torch.relu(y)
        return torch.nn.functional.leaky_relu(y, self.negative_slope, inplace=own)

    def _trains_as_torch(self) -> bool:
        return (
            self.statistics == "batch"
            and not self.inplace
            and self.update_statistics
            and self.accumulate == 1
            and self.on_bad_update == "track"
            and self.unbiased_variance
        )

    def _forward_at_once(self, input: Tensor) -> Tensor | None:
        """Train without options, by the kernel, in the fewest steps; None where anything is in the way."""
        if not self.training or not self.track_running_stats or self.momentum is None:
            return None
        # From where torch keeps them: the attributes are looked up in three places first, which a small batch feels.
        parameters, buffers = self._parameters, self._buffers
        weight, bias = parameters["weight"], parameters["bias"]
        mean, var, seen = buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
        plan = plan_at_once(input, weight, bias, mean, var, seen)
        if plan is None or mean is None or var is None or in_backward():
            return None
        moved = mean, var, seen
        return fused_at_once(
            plan, input, weight, bias, self.eps, self.activation, self.negative_slope, moved, self.momentum
        )

    def _forward_as_torch(self, input: Tensor) -> Tensor:
        """Normalize without options."""
        parameters, buffers, training = self._parameters, self._buffers, self.training
        running_mean, running_var = buffers["running_mean"], buffers["running_var"]
        seen = buffers["num_batches_tracked"]
        share = 0.0
        if training:
            if self.track_running_stats and not in_backward():
                share = share_of_batch(self.momentum, seen)
            else:  # buffers that were left behind when tracking was switched off stay as they are
                running_mean = running_var = seen = None
        return batch_norm(
            input,
            parameters["weight"],
            parameters["bias"],
            eps=self.eps,
            running_mean=running_mean,
            running_var=running_var,
            training=training or (running_mean is None and running_var is None),
            momentum=share,
            activation=self.activation,
            negative_slope=self.negative_slope,
            num_batches_tracked=seen if training else None,
        )

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

    def extra_repr(self) -> str:
        """Show torch's arguments, then the options that differ from torch's way."""
        shown = [super().extra_repr()]
        for name, usual in _USUAL.items():
            value = getattr(self, name)
            if value != usual and not (name == "negative_slope" and self.activation != "leaky_relu"):
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)


_USUAL = {
    "activation": None,
    "negative_slope": None,
    "inplace": False,
    "statistics": "batch",
    "group_size": None,
    "renorm": None,
    "accumulate": 1,
    "on_bad_update": "track",
    "unbiased_variance": True,
    "float32_statistics": False,
    "use_running": None,
    "update_statistics": True,
}


def _whole(number: Any) -> bool:
    return isinstance(number, int) and number >= 1
