"""One norm at several places of a network, where data differ."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope._errors import UsageError
from normscope.evidence import (
    APART,
    Apart,
    Case,
    Cost,
    Evidence,
    Finding,
    Severity,
    apart_in_several,
    cost_of_sharing,
    examples,
    kinds_of_pass,
)
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_LOSS, _FAR = 1.1, 0.5 * math.log(2)


class _Levels(nn.Module):
    """A head whose norm all levels of a pyramid go through: each level has its own scale and offset."""

    def __init__(self, *, factor: float = 4.0, shift: float = 3.0, own: bool = False, levels: int = 3) -> None:
        super().__init__()
        inlets = [nn.Linear(12, 8) for _ in range(levels)]
        for level, inlet in enumerate(inlets):
            with torch.no_grad():
                inlet.weight.mul_(factor**level)
                inlet.bias.fill_(shift * level)
        self.inlets = nn.ModuleList(inlets)
        self.norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(levels if own else 1))
        self.head = nn.Linear(8 * levels, 4)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.norms[level % len(self.norms)](inlet(x)) for level, inlet in enumerate(self.inlets)]
        return self.head(torch.relu(torch.cat(levels, 1)))


class _Recurrent(nn.Module):
    """A cell with a norm, over the steps of a sequence ``(N, 12, L)`` that fades."""

    def __init__(self, *, fades: float = 0.5) -> None:
        super().__init__()
        self.cell, self.norm, self.head = nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.fades = fades

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 8)
        for step in range(x.shape[2]):
            inputs = torch.cat([x[:, :, step], state], 1)
            state = torch.tanh(self.norm(self.fades**step * self.cell(inputs)))
        return self.head(state)


class _Pyramid(nn.Module):
    """Convolutions that are shared by maps of three sizes, the smaller of which are larger numbers."""

    def __init__(self, factor: float = 8.0) -> None:
        super().__init__()
        self.factor = factor
        self.tower = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x, *(4.0 + self.factor * nn.functional.avg_pool2d(x, size) for size in (2, 4))]
        return self.head(torch.cat([self.tower(one).mean((2, 3)) for one in maps], 1))


class _Places(nn.Module):
    """A norm that is called for ``x`` and for ``shift + scale * x``."""

    def __init__(self, shift: float, scale: float) -> None:
        super().__init__()
        self.norm, self.shift, self.scale = examples.batch_norm(mean=1.0), shift, scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(x), self.norm(self.shift + self.scale * x)])


def _planted(*, shift: float = 0.0, scale: float = 1.0, constant: float = 0.0) -> Case:
    """A norm at two places whose data differ by known amounts, and a loss that shows it.

    Args:
        shift: Distance of the means in standard deviations.
        scale: Ratio of the deviations.
        constant: What is added to the loss, which else is zero where each place has its own statistics.
    """

    def loss_fn(model: Any, batch: Tensor) -> Tensor:
        first, second = model(batch).chunk(2)
        return 1e-6 + constant + (first - second).square().mean()

    return Case(_Places(shift, scale).train(), loss_fn, [examples.two_values(0.0, 1.0)] * 4)


class OneNormManyPlaces(AbstractRule):
    r"""One norm is called at several places of a network whose data differ, and its running statistics fit none.

    ## Finds
    A norm in train mode is called several times in one pass of the whole model (for the levels of a pyramid, the steps
    of a recurrent cell, a block that is used again), and means or variances of those calls differ: the distribution
    that evaluation puts out with shared statistics diverges by more than 0.112 nats a channel from that of training, in
    the upper quartile over channels and in the mean over the calls of a pass. Two means one standard deviation apart
    reach that, or two standard deviations as 1 to 2. By how much calls of the same place differ from step to step is
    taken off. The cost is measured: the loss in eval mode with pooled statistics of all places against that with
    statistics of each place. Found is one of more than 1.1 times the other, by more than three standard errors over
    batches or in every one of them. Where nothing is learnt yet, or evaluation cannot be run, it is a warning from 0.35
    nats on (a variance between places as large as that within them), and an information below.

    Calibrated over six seeds: planted defects found, 18 of 18; false alarms on 47 healthy set-ups under eight
    seeds, 0 of 376.

    ## Why it hurts
    Training normalizes each call by itself: every level, every time step comes out with mean 0 and variance 1.
    Evaluation has one mean and one variance for all. They are a mixture, in which the last calls of a pass weigh most,
    and each place is shifted and scaled by what its data differ from the mixture.

    ## Fix
    In the user's code: k norms, one for each place, that share gain and shift
    (``norms[i].weight, norms[i].bias = norms[0].weight, norms[0].bias``). Recurrent networks keep statistics for each
    step up to a largest one, and use those of the largest beyond it; or layer normalization takes the norm's place.
    """

    CODE = "NS136"
    SLUG = "one-norm-many-places"
    SEVERITY = Severity.WARNING
    NEEDS = ()
    SOURCES = ("arXiv:1603.09025 section 3: statistics for each time step", "arXiv:1911.09070: a norm for each level")
    SICK = (
        examples.Planted(partial(examples.healthy, _Levels, shape=(12,)), ["norms.0"]),
        examples.Planted(partial(examples.healthy, _Recurrent, shape=(12, 4)), ["norm"]),
        examples.Planted(partial(examples.healthy, _Pyramid, shape=(3, 8, 8)), ["tower.1"]),
    )
    WELL = (
        partial(examples.healthy, partial(_Levels, own=True), shape=(12,)),
        partial(examples.healthy, partial(_Levels, factor=1.0, shift=0.0), shape=(12,)),
        partial(examples.healthy, partial(_Recurrent, fades=1.0), shape=(12, 4)),
        partial(examples.healthy, examples.mlp),
    )
    NEAR = (
        examples.Near(lambda shift: _planted(shift=shift), found=1.02, quiet=0.98),
        examples.Near(lambda scale: _planted(scale=scale), found=2.05, quiet=1.95),
        # Shared statistics put the two places 2 / sqrt(2) deviations apart: a loss of 2, which is a tenth of 20.
        examples.Near(lambda constant: _planted(shift=2.0, constant=constant), found=19.5, quiet=20.5),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Compare the calls of one pass, then the losses with shared statistics and with those of each place."""
        found: dict[str, Apart] = {}
        counts: dict[str, int] = {}
        for path, module in evidence.updating.items():
            calls = evidence.training.of(path, training=True)
            families = kinds_of_pass(call for call in calls if call.updated and not call.recomputed and call.finite)
            if families:
                found[path], counts[path] = apart_in_several(families, module.eps), max(map(len, families))
        places = [path for path, one in found.items() if one.divergence > APART]
        if not places:
            return
        cost = _cost(evidence, places)
        if cost is not None and not cost.exceeds(_LOSS):
            return
        worst = max(places, key=lambda path: found[path].divergence)
        apart = found[worst]
        yield self.finding(
            f"{counted(len(places), 'norm is', 'norms are')} called {counts[worst]} times in one pass, at places whose "
            f"data differ: {apart.words()}",
            places,
            quantity="divergence of what evaluation puts out from what training puts out, in nats a channel",
            measured=apart.divergence,
            bound=APART,
            cost="one running average is used at all places, and fits none"
            if cost is None
            else cost.words("each place"),
            fix="give each place a norm of its own, all with the same gain and shift",
            severity=Severity.WARNING if cost is not None or apart.divergence > _FAR else Severity.INFO,
            details={"means": apart.means, "deviations": apart.deviations, "places": float(counts[worst])}
            | ({} if cost is None else {"loss_ratio": cost.ratio}),
        )


def _cost(evidence: Evidence, places: list[str]) -> Cost | None:
    """Return what sharing costs in evaluation; None where it cannot be said."""
    if evidence.untrained or not all(path in evidence.moments for path in places):
        return None
    case = evidence.case
    norms = {path: evidence.norms[path] for path in places}
    loader = case.loader if case.eval_loader is None else case.eval_loader
    numbers = range(max(4, evidence.batches))
    try:  # of the pass only the order of its calls is asked: evaluation may make fewer passes than training
        return cost_of_sharing(case, norms, evidence.moments, lambda _, place: place[1], loader, numbers)
    except UsageError:
        return None
