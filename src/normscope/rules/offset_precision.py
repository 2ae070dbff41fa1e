"""Digits lost to a large mean."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from normscope import layers
from normscope.evidence import Case, Evidence, Finding, Severity, convert_places, examples, look, of_this_library
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_RATIO, _RATIO_STRIDED, _ERROR = 1e3, 1e2, 1e-4


def _unpadded(norm: examples.Norm = nn.BatchNorm2d) -> nn.Module:
    """Convolutions without padding: zeros around data far from zero would be an edge of their own."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def _raw(norm: examples.Norm = nn.BatchNorm1d) -> nn.Module:
    """A norm on the data themselves, as on tables whose columns have units."""
    return nn.Sequential(norm(12), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))


def _offset(net: Any, *, mean: float, packed: bool = False, **options: Any) -> Case:
    """Data far from zero, as of raw times, prices or pressures."""
    case = examples.healthy(net, **options)
    assert isinstance(case.loader, list)
    layout: Any = {"memory_format": torch.channels_last} if packed else {}
    case.loader = [((x * 1.5 / x.std() + mean).contiguous(**layout), y) for x, y in case.loader]
    case.eval_loader = None
    return case


def _at(distance: float = 105.0, error: float = 1.1e-4) -> Case:
    """A norm on float16 data so many standard deviations from zero, whose output torch rounds by a known error.

    All values are 10 above or below the mean, and the exact output is 1 - error or its negative: the nearest number
    that float16 has is 1.
    """
    norm = nn.BatchNorm1d(12, eps=200 * error)
    return examples.alone(norm, [examples.two_values(10 * distance, 10.0).half()] * 4)


class OffsetPrecision(AbstractRule):
    r"""A norm's input lies so far from zero that subtracting the mean leaves few digits.

    ## Finds
    In a channel $|\mu|/\sigma$ of a training batch is above 1000 (above 100 for dense layers and channels-last
    maps on the CPU, which torch sums in an order that loses more), and the output of torch's norm, held against the
    same in float64, is off by more than 1e-4 standard deviations. Constant channels, whose spread is rounding alone,
    are passed over, and this library's norms, which first take the data about an estimate of their mean.

    Calibrated over six seeds: planted defects found, 24 of 24; false alarms on 46 healthy set-ups under eight
    seeds, 0 of 368.

    ## Why it hurts
    The sum of squares is of the size of the mean's square, and the variance is a small difference of large numbers.
    Torch's outputs were off by 8e-3 to 0.85 standard deviations at $|\mu|/\sigma$ = 1e4, by 5 at 1e6; the
    running variance is as wrong. On healthy networks the error is near 1e-6.

    ## Fix
    Unsafe, as outputs change by what they were wrong: the norms become this library's. Better still, centre the data
    at the source: what the input has lost in float32 no norm brings back.
    """

    CODE = "NS124"
    SLUG = "offset-precision"
    SEVERITY = Severity.WARNING
    KEEPS = ("evaluation",)
    SOURCES = ("pytorch/pytorch#178123",)
    SICK = (
        examples.Planted(partial(_offset, examples.mlp, mean=3e3), ["1"]),
        partial(_offset, _raw, mean=1e4, shape=(12,)),
        partial(_offset, _unpadded, mean=3e3, packed=True, shape=(3, 8, 8)),
        partial(_offset, _unpadded, mean=1e5, shape=(3, 8, 8)),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_offset, _unpadded, mean=10.0, packed=True, shape=(3, 8, 8)),
        partial(_offset, examples.mlp, mean=1e4, norm=layers.BatchNorm1d),
    )
    NEAR = (
        examples.Near(_at, found=105.0, quiet=95.0),
        examples.Near(lambda error: _at(error=error), found=1.1e-4, quiet=0.9e-4),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Compare means with standard deviations, then torch's output with that of float64."""
        far = self._far(evidence)
        if not far:
            return
        errors = _errors(evidence, {path: evidence.norms[path] for path in far})
        places = [path for path in far if errors.get(path, 0.0) > _ERROR]
        if not places:
            return
        worst = max(places, key=errors.__getitem__)
        yield self.finding(
            f"{counted(len(places), 'norm subtracts', 'norms subtract')} means of up to "
            f"{max(far[path] for path in places):.2g} standard deviations: "
            f"the output is off by up to {errors[worst]:.2g}",
            places,
            quantity="largest error of the normalized values, in standard deviations",
            measured=errors[worst],
            bound=_ERROR,
            cost="that much of what the norm puts out, and of its running variance, is rounding",
            fix="centre the data; or use norms that keep the digits: normscope.surgery.convert(model, 'batch')",
            details={"mean_over_deviation": far[worst]},
        )

    @staticmethod
    def _far(evidence: Evidence) -> dict[str, float]:
        """Return by norm the largest mean over standard deviation of a batch, where it is above the bound."""
        torchs = {path for path, module in evidence.norms.items() if not of_this_library(module) and module.training}
        found: dict[str, float] = {}
        for call in evidence.training.calls if torchs else ():
            if call.path not in torchs or not call.training or not call.finite or call.count < 2:
                continue
            # Below this spread a channel is constant but for the rounding of its values.
            rounding = 4 * torch.finfo(call.dtype).eps * call.mean.abs()
            deviation = call.variance.clamp(min=0).sqrt()
            alive = deviation > rounding
            ratio = float((call.mean.abs() / deviation)[alive].max()) if bool(alive.any()) else 0.0
            bound = _RATIO if call.positions > 1 and not call.channels_last else _RATIO_STRIDED
            if ratio > bound:
                found[call.path] = max(found.get(call.path, 0.0), ratio)
        return found

    def repair(self, case: Case, finding: Finding) -> str:
        """Convert the norms of the finding to this library's."""
        done = convert_places(case, finding, "batch")
        return f"converted {counted(done, 'norm')} to normscope's, which takes the data about their mean first"


def _errors(evidence: Evidence, norms: dict[str, Any]) -> dict[str, float]:
    """Return by norm how far torch's normalized values are from those of float64, on one batch."""
    found: dict[str, float] = {}

    def see(path: str, x: Tensor, _arguments: Any) -> None:
        eps = norms[path].eps
        got = batch_norm(x, None, None, training=True, eps=eps)
        error = (got.double() - batch_norm(x.double(), None, None, training=True, eps=eps)).abs()
        flat = x.double().transpose(0, 1).flatten(1)
        alive = flat.std(1, correction=0) > 4 * torch.finfo(x.dtype).eps * flat.mean(1).abs()
        if bool(alive.any()):
            found[path] = max(found.get(path, 0.0), float(error.transpose(0, 1).flatten(1)[alive].max()))

    look(evidence.case, norms, 1, before=see)
    return found
