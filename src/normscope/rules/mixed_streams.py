"""One running average over two kinds of data."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.evidence import (
    APART,
    Apart,
    Case,
    Evidence,
    Finding,
    Severity,
    apart_in_several,
    examples,
    kinds_of_update,
)
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule


def _two_streams(net: Any, *, shift: float = 6.0, scale: float = 0.5) -> Case:
    """A step that runs two kinds of data through the same norms, as a discriminator does."""

    def losses(model: nn.Module, batch: Any) -> Iterator[Tensor]:
        x, y = batch
        yield examples.loss_fn(model, (x, y)) + examples.loss_fn(model, (x * scale - shift, y))

    return examples.stepped(examples.healthy(net), losses)


def _apart(distance: float, channels: int = 4, *, scale: float = 1.0) -> Case:
    """A norm that two kinds of data go through: the means are so far apart in some of 12 channels.

    Args:
        distance: In standard deviations.
        channels: Number of channels.
        scale: Standard deviation of the second kind over that of the first, in all channels.
    """
    shift = torch.where(torch.arange(12) < channels, 2.0 * distance, 0.0) + 3.0 * (1 - scale)

    def losses(model: Any, batch: Any) -> Iterator[Tensor]:
        yield examples.mean_square(model, batch) + examples.mean_square(model, batch * scale + shift)

    return examples.stepped(examples.alone(examples.batch_norm(), [examples.two_values(3.0, 2.0)] * 4), losses)


class MixedStreams(AbstractRule):
    r"""One norm is given two kinds of data in turn, and averages their statistics.

    ## Finds
    For one update of the optimizer a norm in train mode updates its running statistics in several passes of the model
    (in several calls, where only parts of the model are called), and means or variances of the passes differ. Measured
    is what the mixture of their statistics does: evaluation puts out another distribution than training, and the
    Kullback-Leibler divergence of the two as normal distributions is, in the mean over passes,
    $(\ln V - \overline{\ln v_i}) / 2$, with the variances $v_i$ of the passes and V of all their values
    together. Found is more than 0.112 nats in the upper quartile over channels, as where two means lie one standard
    deviation apart, or one standard deviation is twice the other. Passes are compared call by call, in the mean over
    updates; how much the same pass differs from update to update is taken off.

    Calibrated over six seeds: planted defects found, 24 of 24; false alarms on 47 healthy set-ups under eight
    seeds, 0 of 376.

    ## Why it hurts
    Training normalizes each kind by itself: both come out with mean 0 and variance 1, and the network cannot tell them
    apart by it. The running statistics are a mixture, which fits neither: in evaluation every kind is shifted or
    scaled, and what the network learnt on normalized inputs does not hold. Source and target domains, real and
    generated images, labelled and unlabelled batches are run so.

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
        examples.Planted(partial(_two_streams, examples.mlp, shift=0.0, scale=0.1), ["1"]),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_two_streams, examples.cnn, shift=0.0, scale=1.0),
        partial(examples.healthy, examples.residual),
    )
    NEAR = (
        examples.Near(_apart, found=1.02, quiet=0.98),
        examples.Near(partial(_apart, 2.0), found=4, quiet=3),
        examples.Near(lambda scale: _apart(0.0, scale=scale), found=2.05, quiet=1.95),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Compare the passes of one update."""
        if not evidence.updating or not evidence.training.updates:
            return
        found: dict[str, Apart] = {}
        for path, module in evidence.updating.items():
            calls = evidence.training.of(path, training=True)
            families = kinds_of_update(call for call in calls if call.updated and not call.recomputed and call.finite)
            if families:
                found[path] = apart_in_several(families, module.eps)
        places = [path for path, one in found.items() if one.divergence > APART]
        if not places:
            return
        worst = max((found[path] for path in places), key=lambda one: one.divergence)
        yield self.finding(
            f"{counted(len(places), 'norm is', 'norms are')} given different data within one update: {worst.words()}",
            places,
            quantity="divergence of what evaluation puts out from what training puts out, in nats a channel",
            measured=worst.divergence,
            bound=APART,
            cost="the running statistics are a mixture that fits neither kind of data",
            fix="run both kinds in one batch, or give each its own norms",
            details={"means": worst.means, "deviations": worst.deviations},
        )
