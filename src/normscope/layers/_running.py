"""A batch norm with options: which statistics normalize, and what becomes of them."""

import sys
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module

from normscope._errors import NonFiniteError, UsageError
from normscope.ops import Moments, ShapeError, batch_norm_given, batch_norm_in_place, batch_renorm, ghost_batch_norm
from normscope.ops.batch_norm import check_batch_norm
from normscope.ops.normalize import normalize, statistics
from normscope.ops.recomputation import in_backward, is_recomputation, snapshot
from normscope.ops.sets import BATCH, Masked, StatisticsSet, Synchronised, mask_of_lengths
from normscope.ops.sets.synchronised import is_synchronising
from normscope.ops.standardize import affine
from normscope.ops.track import accumulate, is_sound, share_of_batch, track
from normscope.ops.ways.choose import is_compiling_plainly, is_written_out
from normscope.ops.ways.compiled import compiled_batch_norm

if TYPE_CHECKING:
    from normscope.layers._norm import AbstractBatchNorm


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


def forward(
    layer: "AbstractBatchNorm",
    x: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    population: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, bool]:
    """Normalize as the layer's options say, and track what is to be tracked.

    Returns:
        The normalized values, and whether the layer's activation is already applied.
    """
    if lengths is not None:
        if mask is not None:
            raise UsageError("a mask and lengths say the same: give one of them")
        mask = mask_of_lengths(lengths, x)
    within = BATCH if mask is None else Masked(mask, x)
    over: StatisticsSet = within
    if layer.training and (layer.statistics == "sync" or layer.process_group is not None):
        over = Synchronised(layer.process_group, within) if is_synchronising(layer.process_group) else within
    weight, bias, eps = layer.weight, layer.bias, layer.eps
    stand_in = layer._population
    if population is None and isinstance(stand_in, Given):
        population = stand_in.next()
    if population is not None:
        check_batch_norm(x, weight, bias, *population, training=False)
        return within.keep(batch_norm_given(x, *population, weight, bias, eps=eps)), False

    running = layer.running_mean, layer.running_var
    check_batch_norm(x, weight, bias, *running, training=True, over=over, refuse_one=False)
    if isinstance(stand_in, Recorder):
        stand_in.statistics.append(statistics(x, over))
        return normalize(x, weight, bias, eps, over)[0], False
    if x.numel() == 0 and not isinstance(over, Synchronised):
        return affine(x, weight, bias).to(x.dtype), False  # nothing to take statistics of: the running ones stay
    has_running = running[0] is not None and running[1] is not None
    moves = layer.training and layer.update_statistics and layer.track_running_stats and has_running
    if has_running and (not layer.training if layer.use_running is None else layer.use_running):
        mean, var, _ = _running(layer, moves)
        y = within.keep(batch_norm_given(x, mean, var, weight, bias, eps=eps))
        if moves:
            _update(layer, over.moments(x.detach()))
        return y, False
    y, moments, activated = _by_batch(layer, x, mask, over, moves)
    if _too_few(moments):
        _refuse_one_value(layer, x, mask, has_running)
        mean, var, _ = _running(layer, False)
        return within.keep(batch_norm_given(x, mean, var, weight, bias, eps=eps)), False
    if moves:
        _update(layer, moments)
    return y, activated


def _by_batch(
    layer: "AbstractBatchNorm", x: Tensor, mask: Tensor | None, over: StatisticsSet, moves: bool
) -> tuple[Tensor, Moments, bool]:
    weight, bias, eps = layer.weight, layer.bias, layer.eps
    if layer.training and layer.renorm is not None:
        running = _running(layer, moves)
        return *batch_renorm(x, weight, bias, *running, renorm=layer.renorm, eps=eps, over=over), False
    if layer.training and layer.group_size is not None:
        return *ghost_batch_norm(x, weight, bias, group_size=layer.group_size, eps=eps, mask=mask), False
    if layer.training and layer.inplace:
        slope = layer.negative_slope if layer.activation == "leaky_relu" else 1.0
        if over is BATCH:
            return *batch_norm_in_place(x, weight, bias, eps, slope), True
        y, moments = normalize(x, weight, bias, eps, over)
        return (y if slope == 1 else torch.nn.functional.leaky_relu(y, slope)), moments, True
    if over is BATCH and is_compiling_plainly():
        return *compiled_batch_norm(x, weight, bias, eps, layer.activation, layer.negative_slope), True
    return *normalize(x, weight, bias, eps, over), False


def _running(layer: "AbstractBatchNorm", moves: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the running mean and variance and their number of updates, as a forward that moves them must see them.

    That is, before it moves them; also where it is run again in a backward.
    """
    mean, var, seen = layer.running_mean, layer.running_var, layer.num_batches_tracked
    assert mean is not None
    assert var is not None
    assert seen is not None
    if not moves:
        return mean, var, seen
    if not is_written_out() and in_backward():
        return layer._before or (mean, var, seen)
    before = snapshot(mean), snapshot(var), snapshot(seen)
    if not is_written_out():
        layer._before = before
    return before


def _too_few(moments: Moments) -> bool:
    if not isinstance(moments.count, Tensor):
        return moments.count < 2
    if is_written_out():
        return False
    # A channel of which nothing counts is like an empty batch, and is left as it is.
    return bool((moments.count == 1).any())


def _refuse_one_value(layer: "AbstractBatchNorm", x: Tensor, mask: Tensor | None, has_running: bool) -> None:
    if layer.on_bad_update == "track" or not has_running:
        raise ShapeError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}"
            f"{' with all but one masked' if mask is not None else ''}: one value has no variance; use a larger "
            "batch, drop the last incomplete one, or call .eval()"
        )
    _refuse(layer, "one value a channel", "normalized by the running statistics")


def _update(layer: "AbstractBatchNorm", moments: Moments) -> None:
    """Move the running statistics, unless the options or the numbers are against it."""
    running_mean, running_var, seen = layer.running_mean, layer.running_var, layer.num_batches_tracked
    assert running_mean is not None
    again = is_recomputation(running_mean)
    if again is True:
        return
    _refuse_unstacked(running_mean, moments)
    where: bool | Tensor = True if again is False else torch.logical_not(torch.as_tensor(again))
    if is_written_out():
        if layer.on_bad_update != "track":
            where = is_sound(moments) & where
        elif isinstance(moments.count, Tensor):
            where = (moments.count > 1).all() & where
    elif isinstance(moments.count, Tensor) and not bool((moments.count > 1).all()):
        if bool((moments.count > 0).any()):
            _refuse(layer, "a channel without values", "running statistics left as they were")
        return
    elif layer.on_bad_update != "track" and not bool(is_sound(moments)):
        _refuse(layer, "a batch that is not finite", "running statistics left as they were")
        return
    if layer.accumulate > 1:
        assert layer.pending is not None
        moments, where = accumulate(layer.pending, moments, layer.accumulate, where)
        if not is_written_out():
            if not bool(where):
                return
            where = True
    share: float | Tensor
    if layer.momentum is None and is_written_out() and seen is not None:
        share = 1 / (seen + 1).to(moments.mean.dtype)
    else:
        share = share_of_batch(layer.momentum, seen)
    var = moments.variance(unbiased=layer.unbiased_variance)
    track(running_mean, running_var, moments.mean + moments.low, var, share, where)
    if seen is not None:
        seen.add_(1 if where is True else torch.as_tensor(where).to(seen.dtype))


def _refuse_unstacked(running_mean: Tensor, moments: Moments) -> None:
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return
    batched = torch._C._functorch.is_batchedtensor
    if batched(moments.mean) and not batched(running_mean):
        raise UsageError(
            "vmap over the batches of one batch norm would give one running statistic many values: stack the buffers "
            "(torch.func.stack_module_state), or set update_statistics=False"
        )


def _refuse(layer: "AbstractBatchNorm", what: str, consequence: str) -> None:
    """Say that an update was refused, as loudly as the layer's option has it."""
    if layer.on_bad_update in ("track", "skip"):
        return
    message = f"{name_of(layer)}: {what}; {consequence}"
    if layer.on_bad_update == "raise":
        raise NonFiniteError(
            f"{name_of(layer)}: refused an update of the running statistics by {what}: look at its input"
        )
    warnings.warn(message, stacklevel=2)


def name_of(layer: Module) -> str:
    """Return the path of a layer in the model that is running it, or else how it shows itself.

    A layer does not know its model. But who called it does: the outermost module on the stack that contains it.
    """
    found = None
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Module) and owner is not layer:
            found = next((path for path, module in owner.named_modules() if module is layer), found)
        frame = frame.f_back  # type: ignore[assignment]
    return f"layer '{found}'" if found else repr(layer)
