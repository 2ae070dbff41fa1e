"""Conversion to synchronised norms that loses what a subclass adds."""

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope import layers
from normscope.evidence import Case, Evidence, Finding, Severity, examples, sandbox
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_KNOWN = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    layers.BatchNorm1d,
    layers.BatchNorm2d,
    layers.BatchNorm3d,
)


class _BatchNormAct2d(nn.BatchNorm2d):
    """Batch norm with an activation of its own, as model libraries have it."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.nn.functional.leaky_relu(super().forward(input), 0.2)


class _BatchNormAct1d(nn.BatchNorm1d):
    """The same for ``(N, C)``."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.tanh(super().forward(input))


class _Renamed2d(nn.BatchNorm2d):
    """Adds nothing."""


class _Raised1d(nn.BatchNorm1d):
    """Adds a small number."""

    offset = 0.0

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.offset


def _raised(offset: float) -> Case:
    norm = _Raised1d(12)
    norm.offset = offset
    return examples.alone(norm, [examples.two_values(1.0, 2.0)] * 4)


class SyncConversionDropsSubclass(AbstractRule):
    r"""Conversion to synchronised norms would drop what a subclass of batch norm adds.

    ## Finds
    The model has norms of a class derived from torch's batch norms that is neither torch's nor this library's; a copy
    of each is given to ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` and both are compared in eval mode on the same
    input: their outputs differ. An error where several processes train together or a norm is synchronised already,
    else an information: nothing is lost before somebody converts.

    ## Why it hurts
    The conversion replaces whatever is an instance of batch norm by a plain synchronised one. A norm with a fused
    activation loses it: the network becomes another one, with fewer non-linearities, and no error is raised.

    ## Fix
    None that is mechanical: use the converter of the library that the class comes from.
    """

    CODE = "NS115"
    SLUG = "sync-conversion-drops-subclass"
    SEVERITY = Severity.INFO
    SOURCES = ("pytorch/pytorch#187298",)
    SICK = (
        partial(examples.healthy, examples.cnn, norm=_BatchNormAct2d),
        partial(examples.healthy, examples.mlp, norm=_BatchNormAct1d),
        partial(examples.healthy, examples.residual, norm=_BatchNormAct2d),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(examples.healthy, examples.cnn, norm=_Renamed2d),
        partial(examples.healthy, examples.cnn, norm=layers.BatchNorm2d),
    )
    NEAR = (examples.Near(_raised, found=1.05e-4, quiet=0.95e-4),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Convert a copy of each subclass and compare."""
        odd = {path: module for path, module in evidence.norms.items() if type(module) not in _KNOWN}
        if not odd:
            return
        places, worst = [], 0.0
        shapes = {call.path: call for call in evidence.training.calls}
        with sandbox(evidence.case):
            for path, module in odd.items():
                if path not in shapes:
                    continue
                difference = _difference(module, shapes[path].positions)
                if difference > 1e-4:
                    places.append(path)
                    worst = max(worst, difference)
        if not places:
            return
        many = torch.distributed.is_available() and torch.distributed.is_initialized()
        many = (many and torch.distributed.get_world_size() > 1) or any(
            isinstance(module, nn.SyncBatchNorm) for module in evidence.modules.values()
        )
        kinds = ", ".join(sorted({type(odd[path]).__name__ for path in places}))
        yield self.finding(
            f"converted to synchronised norms, {counted(len(places), 'norm')} of class {kinds} would put out "
            "something else",
            places,
            quantity="largest difference of the outputs before and after conversion",
            measured=worst,
            bound=1e-4,
            cost="the converted network is another one, and nothing says so",
            fix="convert with the library that the class comes from, or rewrite it as a norm and what follows",
            severity=Severity.ERROR if many else Severity.INFO,
        )


def _difference(module: Any, positions: int) -> float:
    one = copy.deepcopy(module).eval().cpu()
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(module)).eval().cpu()
    stream = torch.Generator().manual_seed(0)
    spatial = {1: (positions,) if positions > 1 else ()}.get(_rank(one), (3,) * _rank(one))
    x = torch.randn(16, one.num_features, *spatial, generator=stream).to(one.running_mean)
    with torch.no_grad():
        try:
            return float((one(x) - other(x)).abs().max())
        except Exception:
            return 0.0  # cannot be called so: nothing is known, and nothing is said


def _rank(module: Any) -> int:
    ranks = {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
    return next((rank for kind, rank in ranks.items() if isinstance(module, kind)), 1)
