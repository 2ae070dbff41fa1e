"""Statistics of micro-batches."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from normscope import layers
from normscope.evidence import (
    APART,
    Case,
    Evidence,
    Finding,
    NormCall,
    Severity,
    apart_in_several,
    convert_places,
    examples,
    kinds_of_update,
)
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_VALUES = 64


def _accumulating(net: Any, parts: int, **options: Any) -> Case:
    """A step that accumulates gradients over parts of its batch."""

    def losses(model: nn.Module, batch: Any) -> Iterator[Tensor]:
        for part in zip(*(tensor.chunk(parts) for tensor in batch), strict=True):
            yield examples.loss_fn(model, part) / parts

    return examples.stepped(examples.healthy(net, **options), losses)


def _halves(size: int) -> Case:
    """A norm on the data, with two micro-batches of this size in an update."""

    def losses(model: Any, batch: Any) -> Iterator[Tensor]:
        for part in batch.chunk(2):
            yield examples.mean_square(model, part)

    return examples.stepped(
        examples.alone(examples.batch_norm(), [examples.two_values(3.0, 2.0, 2 * size)] * 4), losses
    )


class GradientAccumulation(AbstractRule):
    r"""Gradients are accumulated over micro-batches, and each is normalized by itself.

    ## Finds
    Within one step of the optimizer a norm in train mode is called for k > 1 micro-batches, each with a backward pass
    of its own, on data of one kind (not as far apart as NS112 finds), with fewer than 64 values a channel each time.
    The later passes add to gradients that the first has written. Several passes do not accumulate where gradients are
    zeroed in between (an ascent step, an attack, the closure of a line search, a step that is skipped), where
    gradients are returned and not written (``torch.autograd.grad``), or where an update lies in between.
    Over ten seeds it found all of 80 loops that accumulate and none of 140 that make several passes and do not; over
    three seeds it found nothing in 47 healthy set-ups.

    ## Why it hurts
    Gradients add up over micro-batches; statistics do not. The step is that of the small batch's network, with its
    noise: the cosine to the gradient of the whole batch was .96, .88 and .21 for micro-batches of 32, 8 and 2. The
    running statistics, besides, take k updates instead of one and forget k times as fast.

    ## Fix
    Unsafe, and only for the running statistics: norms that pool k micro-batches into one update
    (``layers.BatchNorm*(accumulate=k)``). The noise in training is not repaired by it: use larger micro-batches, or
    another norm.
    """

    CODE = "NS113"
    SLUG = "gradient-accumulation"
    SEVERITY = Severity.WARNING
    NEEDS = ("loop",)
    KEEPS = ("training", "evaluation")
    SOURCES = ("pytorch/pytorch#46516",)
    SICK = (
        partial(_accumulating, examples.mlp, 4),
        partial(_accumulating, examples.mlp, 2, depth=5),
        partial(_accumulating, examples.mlp, 8, norm=layers.BatchNorm1d),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_accumulating, examples.cnn, 2),
        partial(_accumulating, examples.mlp, 1),
    )
    NEAR = (examples.Near(_halves, found=63, quiet=64),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Count updates by step of the optimizer."""
        if not evidence.updating or evidence.case.optimizer is None or not evidence.training.updates:
            return  # steps without an update, as a gradient scaler begins, do not say how many calls an update has
        found: dict[str, tuple[int, int]] = {}
        for path, module in evidence.updating.items():
            if getattr(module, "accumulate", 1) not in (None, 1):
                continue
            calls = evidence.training.of(path, training=True)
            calls = [call for call in calls if not call.recomputed and call.finite and call.grad]
            updates = _micro_batches_of(calls, evidence.training.sums)
            several = [kept for kept in updates if len(kept) > 1]
            if len(several) < max(1, len(updates) // 2):
                continue
            fewest = min(call.count for calls in several for call in calls)
            families = kinds_of_update(calls)
            if fewest < _VALUES and not (families and apart_in_several(families, module.eps).divergence > APART):
                found[path] = max(len(calls) for calls in several), fewest
        if not found:
            return
        times, fewest = max(times for times, _ in found.values()), min(values for _, values in found.values())
        yield self.finding(
            f"{counted(len(found), 'norm is', 'norms are')} called {times} times between two updates, on {fewest} "
            "values a channel or more",
            list(found),
            quantity="values a channel of a micro-batch",
            measured=float(fewest),
            bound=float(_VALUES),
            cost="each micro-batch is normalized by itself: the gradient is that of the small batch",
            fix="pool the running statistics: normscope.surgery.convert(model, 'batch', accumulate=k); for gradients "
            "use larger micro-batches or group normalization",
            details={"calls": float(times)},
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Have the norms of the finding pool as many micro-batches as an update has."""
        times = int(finding.details["calls"])
        done = convert_places(case, finding, "batch", accumulate=times)
        return f"converted {counted(done, 'norm')} to update once for {times} micro-batches"


def _micro_batches_of(calls: Iterable[NormCall], sums: Mapping[int, tuple[int, int]]) -> list[list[NormCall]]:
    """Return for each sum of gradients the first call of every micro-batch: each has a backward pass of its own.

    A norm that the graph of one loss uses several times, at several levels or for two views, does not accumulate. Nor
    does it where that graph holds an earlier backward pass, as a penalty on gradients has it.

    Args:
        calls: The calls of a norm.
        sums: ``Training.sums``.
    """
    found: dict[tuple[int, int], list[NormCall]] = {}
    for call in calls:
        if call.graph in sums:
            kept = found.setdefault(sums[call.graph], [])
            if all(call.graph != c.graph and (call.step, call.backward) != (c.step, c.backward) for c in kept):
                kept.append(call)
    return list(found.values())
