"""Kinds of data that take turns from step to step."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from normscope._errors import UsageError
from normscope.evidence import (
    APART,
    Apart,
    Case,
    Cost,
    Evidence,
    Finding,
    Severity,
    Streams,
    apart_in_several,
    cost_of_sharing,
    examples,
    kinds_of_step,
    kinds_of_update,
)
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_LOSS = 1.1


def _alternating(
    net: Any, *, shift: float = 4.0, scale: float = 0.5, turns: str = "AB", trained: int = 60, **options: Any
) -> Case:
    """A loader whose batches are of two domains in turn; the second has other means and deviations."""
    case = examples.healthy(net, trained=0, **options)
    assert isinstance(case.loader, list)
    assert case.optimizer is not None
    case.loader = [
        (x if turns[index % len(turns)] == "A" else scale * x + shift, y) for index, (x, y) in enumerate(case.loader)
    ]
    with torch.enable_grad():
        for index in range(trained):
            case.optimizer.zero_grad()
            examples.loss_fn(case.model, case.loader[index % len(case.loader)]).backward()
            case.optimizer.step()
    case.optimizer.zero_grad()
    return case


def _updates_in_turn(net: Any, *, shift: float = 6.0, scale: float = 0.5) -> Case:
    """A step that makes an update on a batch, and another on the batch of another domain."""
    case = examples.healthy(net)

    def step(model: nn.Module, batch: Any) -> None:
        assert case.optimizer is not None
        x, y = batch
        for domain in (x, scale * x - shift):
            case.optimizer.zero_grad()
            examples.loss_fn(model, (domain, y)).backward()
            case.optimizer.step()

    case.step = step
    return case


def _planted(shift: float, scale: float = 1.0, turns: str = "AB") -> Case:
    """A norm on the data, with two kinds of batches in turn that differ by known amounts."""
    kinds = {"A": examples.two_values(0.0, 1.0), "B": examples.two_values(shift, scale)}
    loader = [kinds[turns[index % len(turns)]] for index in range(10)]
    return examples.alone(examples.batch_norm(), loader)


class AlternatingStreams(AbstractRule):
    r"""Batches of different kinds take turns, and one running average is taken over them all.

    ## Finds
    Batches from all along the loader fall into kinds at some norm in train mode: within a kind they differ as batches
    of samples drawn at random do, between kinds by more. (Squared differences of means, and of variances, over their
    expectation are 1 by chance; more than 9 in the upper quartile over channels divides two batches.) Each kind has two
    batches at least, and one of them comes again after another: kinds in order are an unshuffled loader, which NS120
    finds. Found as well are steps that make several updates, each on data of its own. Kinds differ if evaluation with
    shared statistics puts out a distribution that diverges by more than 0.112 nats a channel from that of training, in
    the upper quartile over channels: by as much as for two means one standard deviation apart, or two standard
    deviations as 1 to 2. For batches of the loader the cost is measured: their loss in eval mode with statistics of all
    of them against that with statistics of each kind. Less than 1.1 times the loss makes it an information.

    Calibrated over six seeds: planted defects found, 24 of 24; false alarms on 47 healthy set-ups under eight
    seeds, 0 of 376.

    ## Why it hurts
    Training normalizes each kind by itself: all come out with mean 0 and variance 1. The running statistics swing
    between the kinds, and are a mixture in which the last steps weigh most: in evaluation each kind is shifted and
    scaled, and the result depends on the batch with which training ended. Source and target domains, real and generated
    batches, several tasks or data sets in turn are run so.

    ## Fix
    In the user's code: batches that hold all kinds, or a norm for each kind (domain-specific statistics, gain and shift
    shared or not). With recalibration on one kind evaluation fits that kind alone.
    """

    CODE = "NS135"
    SLUG = "alternating-streams"
    SEVERITY = Severity.WARNING
    SOURCES = ("arXiv:1603.04779: statistics for each domain", "arXiv:1906.03950 section 3")
    SICK = (
        examples.Planted(partial(_alternating, examples.mlp), ["1"]),
        examples.Planted(partial(_alternating, examples.cnn, turns="AAB"), ["1"]),
        examples.Planted(partial(_alternating, examples.residual, shift=0.0, scale=6.0), ["stem.1"]),
        examples.Planted(partial(_updates_in_turn, examples.mlp), ["1"]),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_alternating, examples.cnn, shift=0.0, scale=1.0),
        partial(_alternating, examples.residual, turns="AAAAAABBBBBB"),
        partial(_updates_in_turn, examples.mlp, shift=0.0, scale=1.0),
    )
    NEAR = (
        examples.Near(_planted, found=1.02, quiet=0.98),
        examples.Near(partial(_planted, 0.0), found=2.05, quiet=1.95),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look for kinds among batches, then among the updates of a step."""
        if not evidence.updating:
            return
        mixed = _mixed_in_an_update(evidence)
        streams = evidence.streams
        found = {} if streams is None else {path: one for path, one in streams.apart.items() if path not in mixed}
        if streams is not None and found:
            cost = _cost(evidence, list(found), streams)
            yield self._of(
                found,
                f"batches of {streams.count} kinds alternate in the loader",
                cost=cost,
                severity=Severity.INFO if cost is not None and not cost.exceeds(_LOSS) else Severity.WARNING,
            )
            return
        found = _in_turn(evidence, mixed)
        if found:
            yield self._of(found, "a step makes several updates, each on data of another kind")

    def _of(
        self, found: dict[str, Apart], what: str, *, cost: Cost | None = None, severity: Severity | None = None
    ) -> Finding:
        worst = max(found.values(), key=lambda one: one.divergence)
        return self.finding(
            f"{what}, and {counted(len(found), 'norm averages', 'norms average')} over them: {worst.words()}",
            list(found),
            quantity="divergence of what evaluation puts out from what training puts out, in nats a channel",
            measured=worst.divergence,
            bound=APART,
            cost="the running statistics are a mixture that fits no kind" if cost is None else cost.words("each kind"),
            fix="mix the kinds in every batch, or give each kind its own norms",
            severity=severity,
            details={"means": worst.means, "deviations": worst.deviations}
            | ({} if cost is None else {"loss_ratio": cost.ratio}),
        )


def _mixed_in_an_update(evidence: Evidence) -> set[str]:
    """Return the norms whose kinds of data make up one update: those are NS112's."""
    found = set()
    for path, module in evidence.updating.items():
        families = kinds_of_update(_calls(evidence, path))
        if families and apart_in_several(families, module.eps).divergence > APART:
            found.add(path)
    return found


def _in_turn(evidence: Evidence, mixed: set[str]) -> dict[str, Apart]:
    found = {}
    for path, module in evidence.updating.items():
        families = kinds_of_step(_calls(evidence, path))
        if families and path not in mixed:
            found[path] = apart_in_several(families, module.eps)
    return {path: one for path, one in found.items() if one.divergence > APART}


def _calls(evidence: Evidence, path: str) -> list[Any]:
    calls = evidence.training.of(path, training=True)
    return [call for call in calls if call.updated and not call.recomputed and call.finite]


def _cost(evidence: Evidence, places: list[str], streams: Streams) -> Cost | None:
    """Return what sharing costs where training batches are evaluated; None where it cannot be said."""
    if evidence.untrained:
        return None
    norms = {path: evidence.norms[path] for path in places}
    try:
        return cost_of_sharing(
            evidence.case,
            norms,
            evidence.moments,
            lambda batch, _: streams.of_batch.get(batch),
            evidence.case.loader,
            evidence.looked_at,
        )
    except UsageError:
        return None
