"""What batch norms of one, two and three dimensions share: everything."""

from typing import Any, Unpack

import torch
from torch import Tensor

from normscope._errors import UsageError
from normscope.layers._group import GroupOfProcesses
from normscope.layers._layer import AbstractLayer
from normscope.layers._running import AbstractRunningStatistics, Given, Recorder
from normscope.layers.options import NAMES, BatchNormKeywords, BatchNormOptions
from normscope.ops import (
    Moments,
    ShapeError,
    batch_norm,
    batch_norm_given,
    batch_norm_in_place,
    batch_renorm,
    ghost_batch_norm,
)
from normscope.ops.activation import activate
from normscope.ops.batch_norm import check_batch_norm
from normscope.ops.normalize import normalize, statistics
from normscope.ops.recomputation import in_backward
from normscope.ops.sets import BATCH, Masked, StatisticsSet, Synchronised, mask_of_lengths
from normscope.ops.sets.synchronised import is_synchronising
from normscope.ops.standardization import affine
from normscope.ops.track import share_of_batch
from normscope.ops.ways.choose import is_compiling_plainly, is_written_out, plan_at_once
from normscope.ops.ways.compiled import compiled_batch_norm
from normscope.ops.ways.kernel import fused_at_once


class AbstractBatchNorm(AbstractLayer, AbstractRunningStatistics):
    """Torch's parameters, buffers and state dict; the numbers come from ``normscope.ops``.

    Without options it does the same as torch's layer, but for two repairs: a forward that is run again inside a
    backward (activation checkpointing) does not move the running statistics a second time, and a backward through
    statistics that have moved since its forward is right.

    Args:
        num_features: Channels ``C``.
        eps: Added to the variance, in squared units of the input.
        momentum: Share of the newest batch in the running statistics; None for the average over all batches.
        affine: Whether there are a gain (``weight``) and a shift (``bias``) to learn.
        track_running_stats: Whether running statistics are kept; without them each batch has its own, in eval too.
        device: Where parameters and buffers live.
        dtype: Their type.
        bias: With ``affine``, whether there is a shift besides the gain.
        **options: Those of ``normscope.layers.options.BatchNormOptions``. Each is an attribute of the layer too, and
            may be assigned to.

    Raises:
        UnknownOptionError: A keyword names no option; a ``UsageError`` and a ``TypeError``.
        UsageError: Options do not go together.
    """

    _group: GroupOfProcesses | None = None

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
        **options: Unpack[BatchNormKeywords],
    ) -> None:
        chosen = BatchNormOptions.asked(type(self), **options)
        self._take(chosen)  # first, for torch's constructor resets the running statistics, unless they are frozen
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        chosen.check(track_running_stats=track_running_stats, eps=eps)
        if not bias:
            self.register_parameter("bias", None)
        self._make_buffers()

    def _take(self, options: BatchNormOptions) -> None:
        for name in NAMES:
            object.__setattr__(self, name, getattr(options, name))

    @property
    def process_group(self) -> Any:
        """The processes that statistics are synchronised over; None for all. Copies share it; pickles have its ranks.

        Raises:
            UsageError: The layer was unpickled among connected processes and was of some of them: set the group anew.
        """
        return None if self._group is None else self._group.current()

    @process_group.setter
    def process_group(self, group: Any) -> None:
        self._group = None if group is None else GroupOfProcesses(group)

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
        if not isinstance(input, Tensor):  # a tracer's proxy
            return self.recorded(input, mask=mask, lengths=lengths, population=population)
        self._check_input_dim(input)
        plain = (
            mask is None
            and lengths is None
            and population is None
            and self._population is None
            and self.use_running is None
            and (not self.training or self.trains_as_torch())
        )
        if plain and (y := self._forward_at_once(input)) is not None:
            return y
        if plain and not is_written_out():
            return self._forward_as_torch(input)
        y, activated = self._forward_with_options(input, mask, lengths, population)
        if self.activation is None or activated:
            return y
        return activate(y, self.activation, self.negative_slope, own=y is not input)

    def trains_as_torch(self) -> bool:
        """Say whether training normalizes and tracks as torch does; whatever the activation."""
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
                share = float(share_of_batch(self.momentum, seen))
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

    def _forward_with_options(
        self, x: Tensor, mask: Tensor | None, lengths: Tensor | None, population: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, bool]:
        """Normalize as the options say, and update the running statistics if they ask for it.

        Returns:
            The normalized values, and whether the activation is applied already.
        """
        if lengths is not None:
            if mask is not None:
                raise UsageError("a mask and lengths say the same: give one of them")
            mask = mask_of_lengths(lengths, x)
        within = BATCH if mask is None else Masked(mask, x)
        over: StatisticsSet = within
        if self.training and (self.statistics == "sync" or self.process_group is not None):
            over = Synchronised(self.process_group, within) if is_synchronising(self.process_group) else within
        weight, bias, eps = self.weight, self.bias, self.eps
        stand_in = self._population
        if population is None and isinstance(stand_in, Given):
            population = stand_in.next()
        if population is not None:
            check_batch_norm(x, weight, bias, *population, training=False)
            return within.keep(batch_norm_given(x, *population, weight, bias, eps=eps)), False

        running = self.running_mean, self.running_var
        check_batch_norm(x, weight, bias, *running, training=True, over=over, refuse_one=False)
        if isinstance(stand_in, Recorder):
            stand_in.statistics.append(statistics(x, over))
            return normalize(x, weight, bias, eps, over)[0], False
        if x.numel() == 0 and not isinstance(over, Synchronised):
            return affine(x, weight, bias).to(x.dtype), False  # nothing to take statistics of: the running ones stay
        has_running = running[0] is not None and running[1] is not None
        moves = self.training and self.update_statistics and self.track_running_stats and has_running
        if has_running and (not self.training if self.use_running is None else self.use_running):
            mean, var, _ = self._running_before(moves)
            y = within.keep(batch_norm_given(x, mean, var, weight, bias, eps=eps))
            if moves:
                self._update(over.moments(x.detach()))
            return y, False
        y, moments, activated = self._by_batch(x, mask, over, moves)
        if _too_few(moments):
            if self.on_bad_update == "track" or not has_running:
                raise ShapeError(
                    f"Expected more than 1 value per channel when training, got input size {x.shape}"
                    f"{' with all but one masked' if mask is not None else ''}: one value has no variance; use a "
                    "larger batch, drop the last incomplete one, or call .eval()"
                )
            self._refuse("one value a channel", "normalized by the running statistics")
            mean, var, _ = self._running_before(False)
            return within.keep(batch_norm_given(x, mean, var, weight, bias, eps=eps)), False
        if moves:
            self._update(moments)
        return y, activated

    def _by_batch(
        self, x: Tensor, mask: Tensor | None, over: StatisticsSet, moves: bool
    ) -> tuple[Tensor, Moments, bool]:
        """Normalize by the statistics of this batch; return them too, and whether the activation is applied."""
        weight, bias, eps = self.weight, self.bias, self.eps
        if self.training and self.renorm is not None:
            running = self._running_before(moves)
            return *batch_renorm(x, weight, bias, *running, renorm=self.renorm, eps=eps, over=over), False
        if self.training and self.group_size is not None:
            return *ghost_batch_norm(x, weight, bias, group_size=self.group_size, eps=eps, mask=mask), False
        if self.training and self.inplace:
            slope = self.negative_slope if self.activation == "leaky_relu" else 1.0
            if over is BATCH:
                return *batch_norm_in_place(x, weight, bias, eps, slope), True
            y, moments = normalize(x, weight, bias, eps, over)
            return (y if slope == 1 else torch.nn.functional.leaky_relu(y, slope)), moments, True
        if over is BATCH and is_compiling_plainly():
            return *compiled_batch_norm(x, weight, bias, eps, self.activation, self.negative_slope), True
        return *normalize(x, weight, bias, eps, over), False

    def extra_repr(self) -> str:
        """Show torch's arguments, then the options that differ from torch's way."""
        options = BatchNormOptions.of(self, process_group=None).changed()
        return ", ".join([super().extra_repr(), *(f"{name}={value!r}" for name, value in options.items())])


def _too_few(moments: Moments) -> bool:
    if not isinstance(moments.count, Tensor):
        return moments.count < 2
    if is_written_out():
        return False
    # A channel of which nothing counts is like an empty batch, and is left as it is.
    return bool((moments.count == 1).any())
