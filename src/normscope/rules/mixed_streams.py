"""One running average over two kinds of data."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.evidence import Case, Evidence, Finding, Severity, by_update, distance_of_means, examples
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_APART = 1.0


def _two_streams(net: Any, *, shift: float = 6.0) -> Case:
    """A step that runs two kinds of data through the same norms, as a discriminator does."""

    def losses(model: nn.Module, batch: Any) -> Iterator[Tensor]:
        x, y = batch
        yield examples.loss_fn(model, (x, y)) + examples.loss_fn(model, (x * 0.5 - shift, y))

    return examples.stepped(examples.healthy(net), losses)


def _apart(distance: float, channels: int = 4) -> Case:
    """A norm that two kinds of data go through: the means are so far apart in some of 12 channels."""
    shift = torch.where(torch.arange(12) < channels, 2.0 * distance, 0.0)

    def losses(model: Any, batch: Any) -> Iterator[Tensor]:
        yield examples.mean_square(model, batch) + examples.mean_square(model, batch + shift)

    return examples.stepped(examples.alone(examples.batch_norm(), [examples.two_values(3.0, 2.0)] * 4), losses)


class MixedStreams(AbstractRule):
    r"""One norm is given two kinds of data in turn, and averages their statistics.

    ## Finds
    Within one step of the optimizer a norm in train mode updates its running statistics twice or more, and the means of
    those calls lie more than one standard deviation apart: in the upper quartile over channels and the median over
    steps, and in the mean standard deviation of the calls.

    ## Why it hurts
    Training normalizes each kind by itself: both come out with mean 0, and the network cannot tell them apart by it.
    The running statistics are a mixture, which fits neither: in evaluation every kind is shifted, and what the network
    learnt on normalized inputs does not hold. Source and target domains, real and generated images, labelled and
    unlabelled batches are run so.

    ## Fix
    Unsafe, in the user's code: one batch of both kinds together, or one norm for each kind.
    """

    CODE = "NS112"
    SLUG = "mixed-streams"
    SEVERITY = Severity.WARNING
    NEEDS = ("loop",)
    SOURCES = ("soumith/ganhacks#52",)
    SICK = (
        examples.Planted(partial(_two_streams, examples.mlp), ["1"]),
        examples.Planted(partial(_two_streams, examples.cnn), ["1"]),
        examples.Planted(partial(_two_streams, examples.residual), ["stem.1"]),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_two_streams, examples.cnn, shift=0.0),
        partial(examples.healthy, examples.residual),
    )
    NEAR = (
        examples.Near(_apart, found=1.02, quiet=0.98),
        examples.Near(partial(_apart, 2.0), found=4, quiet=3),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Compare the means of the calls of one step."""
        if not evidence.updating or not evidence.training.updates:
            return
        found: dict[str, float] = {}
        for path in evidence.updating:
            calls = evidence.training.of(path, training=True)
            updates = by_update(call for call in calls if call.updated and not call.recomputed and call.finite)
            apart = [distance_of_means(several) for several in updates if len(several) > 1]
            if apart:
                found[path] = float(torch.tensor(apart).median())
        places = [path for path, distance in found.items() if distance > _APART]
        if not places:
            return
        worst = max(found[path] for path in places)
        yield self.finding(
            f"{counted(len(places), 'norm is', 'norms are')} given different data within one update: the means lie "
            f"{worst:.2g} standard "
            "deviations apart",
            places,
            quantity="distance of the means of two calls in standard deviations, upper quartile over channels",
            measured=worst,
            bound=_APART,
            cost="the running statistics are a mixture that fits neither kind of data",
            fix="run both kinds in one batch, or give each its own norms",
        )
