"""Momentum by another framework's convention."""

from collections.abc import Iterable
from functools import partial

from torch import nn

from normscope.evidence import Case, Evidence, Finding, Severity, examples, modules_of
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_LARGE = 0.5


def _set(model: nn.Module, momentum: float | None) -> None:
    for norm in examples.norms(model):
        norm.momentum = momentum


def _planted(momentum: float) -> Case:
    return examples.alone(examples.batch_norm(momentum=momentum), [examples.two_values(1.0, 2.0)] * 4)


class MomentumConvention(AbstractRule):
    r"""Momentum is given by another framework's convention, or is zero.

    ## Finds
    A norm that tracks statistics in train mode with momentum 0.5 or more, or 0. In torch momentum is the weight of the
    *new* batch; in TensorFlow, Keras and most papers it is the weight of the *old* average, so that 0.99 there is 0.01
    here. ``None`` (the cumulative average) is no number and fits.

    ## Why it hurts
    With momentum 0.99 the running statistics are those of the last batch, noise and all, and every evaluation depends
    on which batch came last. With 0 they never leave their initial values, and evaluation does not normalize at all.

    ## Fix
    Unsafe: one minus the momentum; for 0, torch's default 0.1. What the buffers hold already is not repaired:
    recalibrate them.
    """

    CODE = "NS108"
    SLUG = "momentum-convention"
    SEVERITY = Severity.ERROR
    KEEPS = ("training", "evaluation")
    SOURCES = ("pytorch/vision#8250", "Cadene/pretrained-models.pytorch#5")
    SICK = (
        partial(examples.healthy, examples.mlp, change=partial(_set, momentum=0.99)),
        partial(examples.healthy, examples.cnn, change=partial(_set, momentum=0.0)),
        partial(examples.healthy, examples.residual, change=partial(_set, momentum=0.9)),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(examples.healthy, examples.cnn, change=partial(_set, momentum=0.01)),
        partial(examples.healthy, examples.residual, change=partial(_set, momentum=None)),
    )
    NEAR = (
        examples.Near(_planted, found=0.5, quiet=0.499),
        examples.Near(_planted, found=0.0, quiet=1e-3),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look at the momentum of each norm that counts."""
        found: dict[float, list[str]] = {}
        for path, module in evidence.updating.items():
            momentum = module.momentum
            if momentum is not None and (momentum >= _LARGE or momentum == 0):
                found.setdefault(float(momentum), []).append(path)
        for momentum, places in found.items():
            new = 0.1 if momentum == 0 else 1 - momentum
            yield self.finding(
                f"{counted(len(places), 'norm has', 'norms have')} momentum {momentum:g}, which in torch is the "
                "weight of the new batch" + (": the running statistics never change" if momentum == 0 else ""),
                places,
                quantity="momentum",
                measured=momentum,
                bound=_LARGE,
                cost="evaluation normalizes by initial values"
                if momentum == 0
                else f"the running statistics are {momentum:.0%} those of the last batch",
                fix=f"set momentum to {new:g}, then recalibrate",
            )

    def repair(self, case: Case, finding: Finding) -> str:
        """Set the momentum."""
        momentum = finding.measured or 0.0
        new = 0.1 if momentum == 0 else round(1 - momentum, 12)
        for module in modules_of(case, finding):
            module.momentum = new
        norms = counted(len(finding.places), "norm")
        return f"set momentum to {new:g} in {norms}; the running statistics are as they were: recalibrate them"
