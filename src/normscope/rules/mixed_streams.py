"""One running average over two kinds of data."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.evidence import Case, Evidence, Finding, Severity, by_update, distance_of_means, examples
from normscope.rules._rule import AbstractRule

_APART = 1.0


def _two_streams(net: Any, *, shift: float = 6.0) -> Case:
    """A step that runs two kinds of data through the same norms, as a discriminator does."""

    def losses(model: nn.Module, batch: Any) -> Iterator[Tensor]:
        x, y = batch
        yield examples.loss_fn(model, (x, y)) + examples.loss_fn(model, (x * 0.5 - shift, y))

    return examples.stepped(examples.healthy(net), losses)


class MixedStreams(AbstractRule):
    r"""One norm is given two kinds of data in turn, and averages their statistics.

    ## Finds
    Within one step of the optimizer a norm in train mode updates its running statistics twice or more, and the means of
    those calls lie more than one standard deviation apart in at least a quarter of its channels (the median over steps;
    the standard deviation is the mean one of the calls).

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
        partial(_two_streams, examples.mlp),
        partial(_two_streams, examples.cnn),
        partial(_two_streams, examples.residual),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_two_streams, examples.cnn, shift=0.0),
        partial(examples.healthy, examples.residual),
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
            f"{len(places)} norms are given different data within one update: their means lie {worst:.2g} standard "
            "deviations apart",
            places,
            quantity="distance of the means of two calls in standard deviations, upper quartile over channels",
            measured=worst,
            bound=_APART,
            cost="the running statistics are a mixture that fits neither kind of data",
            fix="run both kinds in one batch, or give each its own norms",
        )
