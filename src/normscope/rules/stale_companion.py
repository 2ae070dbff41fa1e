"""A second model that follows the trained one, with running statistics that are not those of its weights."""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.evidence import (
    Case,
    Companion,
    Evidence,
    Finding,
    Gain,
    NotShownError,
    Severity,
    examples,
    gain_of,
    is_copy,
    recalibrate_companion,
    tracking,
    with_companion,
)
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule


@torch.no_grad()
def _average_parameters(companion: Any, model: Any) -> None:
    """Follow as many loops do: parameters only."""
    for mine, theirs in zip(companion.parameters(), model.parameters(), strict=True):
        mine.lerp_(theirs, 0.1)


@torch.no_grad()
def _average_all(companion: Any, model: Any) -> None:
    for mine, theirs in zip(companion.state_dict().values(), model.state_dict().values(), strict=True):
        mine.lerp_(theirs, 0.1) if mine.is_floating_point() else mine.copy_(theirs)


def _copy_parameters(companion: Any, model: Any) -> None:
    with torch.no_grad():
        for mine, theirs in zip(companion.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs)


def _copy_all(companion: Any, model: Any) -> None:
    companion.load_state_dict(model.state_dict())


def _targeted(net: Any, follow: Callable[[Any, Any], None], *, called: bool = True, mode: bool = False) -> Case:
    """A model and its target: a copy as of the beginning of training that follows it for 60 steps.

    Args:
        net: The network.
        follow: How it follows.
        called: Whether the step asks the target.
        mode: In which mode.
    """

    def losses(model: Any, target: Any, batch: Any) -> Iterator[Tensor]:
        loss = examples.loss_fn(model, batch)
        if called:
            with torch.no_grad():
                wanted = target(batch[0]).softmax(1)
            loss = loss + 0.1 * nn.functional.cross_entropy(model(batch[0]), wanted)
        yield loss

    case = examples.healthy(net, trained=0)
    companion = copy.deepcopy(case.model).requires_grad_(False).train(mode)
    case = with_companion(case, losses, companion=companion, follow=follow)
    step, optimizer = case.step, case.optimizer
    assert step is not None
    assert optimizer is not None
    with torch.enable_grad():
        for batch in [*case.loader] * 5:
            step(case.model, batch)
    optimizer.zero_grad()
    return case


def _halved(constant: float, share: float = 1.0) -> Case:
    """A copy with half of the variance of the data, where all batches but one have a share of that one's.

    Its loss is 2 where it would be 1, and a constant.
    """
    pooled = 4.0 * (1 + 9 * share) / 10 * 320 / 319
    norm = examples.batch_norm(variance=pooled)

    def loss_fn(model: Any, batch: Any) -> Tensor:
        return examples.mean_square(model, batch) + constant

    loader = [examples.two_values(0.0, 2.0), *[examples.two_values(0.0, 2.0 * share**0.5)] * 9]
    case = examples.alone(norm, loader, loss_fn=loss_fn)
    companion: Any = copy.deepcopy(case.model).requires_grad_(False).eval()
    companion[0].running_var.div_(2)
    return with_companion(case, lambda model, _, batch: [loss_fn(model, batch)], companion=companion)


class StaleCompanion(AbstractRule):
    r"""A second model follows the trained one, and its running statistics are not those of its weights.

    ## Finds
    A companion is a module beside the model, reached by the loss or the step, or a part of the model, that has
    parameters of the same names and shapes as the model or a part of it, and that no optimizer trains: a target
    network, a teacher of averaged weights, a global model. It is judged if it follows the model (in a few training
    steps its parameters move, or they equal the model's, or its statistics are copied or initial) and if its running
    statistics are used: it is called in eval mode, or not at all in the steps. It is found if its loss in eval mode
    over training batches, in the place of its part of the model, falls to less than 1/1.2 with statistics taken anew
    from the training data, by more than three standard errors of the fall over batches, and 1.2 times as far as the
    loss of the model itself would. Averaged weights that the case names are NS107's.
    Calibrated over four seeds of six networks: planted defects found, 71 of 72 (averages of parameters alone, copies of
    parameters alone, averages of all by 0.99 after 80 steps); false alarms on 216 set-ups with a second model that
    follows rightly, none, and on 47 healthy set-ups under eight seeds, none. An average of all by 0.9 is found in 4 of
    24 after its first 40 steps: its statistics still hold initial values, and it loses by them.

    ## Why it hurts
    ``parameters()`` has no buffers: a target that copies or averages parameters keeps the running statistics of
    long ago. An average of buffers with a decay of 0.99 still holds a third of its first values after a hundred steps.
    What such a model puts out in eval mode belongs to no weights that there ever were, and the model learns from it.

    ## Fix
    Unsafe: take its statistics anew from the training data now. In the loop: copy or average the buffers too, with a
    decay that their momentum has already, or recalibrate before the companion is used.
    """

    CODE = "NS131"
    SLUG = "stale-companion"
    SEVERITY = Severity.ERROR
    NEEDS = ("loop",)
    KEEPS = ("training", "evaluation")
    SOURCES = ("CuriousAI/mean-teacher#9", "pytorch/ignite#2592", "Izmailov et al. 2018, section 3.2")
    SICK = (
        examples.Planted(
            partial(_targeted, examples.mlp, _average_parameters),
            ["step.companion.1", "step.companion.4", "step.companion.7"],
        ),
        examples.Planted(partial(_targeted, examples.cnn, _copy_parameters), ["step.companion.1", "step.companion.5"]),
        examples.Planted(
            partial(_targeted, examples.mlp, _copy_parameters, called=False),
            ["step.companion.1", "step.companion.4", "step.companion.7"],
        ),
    )
    WELL = (
        partial(_targeted, examples.mlp, _average_all),
        partial(_targeted, examples.cnn, _copy_all),
        partial(_targeted, examples.mlp, _average_parameters, mode=True),
    )
    NEAR = (
        examples.Near(_halved, found=3.9, quiet=4.1),
        examples.Near(lambda share: _halved(0.0, share), found=0.17, quiet=0.16),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Take the statistics of each companion anew, and hold the losses against each other."""
        if evidence.under_way:
            raise NotShownError("judges second models, which a scope is not given: ns.check(Case(..., step=...))")
        if evidence.untrained:
            return
        for companion in evidence.companions:
            averaged = evidence.case.averaged
            if averaged is not None and companion.module in set(averaged.modules()):
                continue
            if not (_follows(evidence, companion) and _reads_its_statistics(evidence, companion)):
                continue
            gain = gain_of(evidence.case, companion, evidence.batches)
            if evidence.is_costly(gain):
                yield self._of(companion, gain)

    def _of(self, companion: Companion, gain: Gain) -> Finding:
        worst = max(gain.shift.values(), default=0.0)
        whole = f"as {companion.part} of the model" if companion.part else "as the model"
        return self.finding(
            f"{companion.name} is built {whole} and follows it, but its running statistics are not those of its "
            f"weights: with statistics of the training data its loss on these falls to 1/{gain.excess:.3g}",
            [f"{companion.name}.{path}" for path in gain.shift],
            quantity="loss in eval mode over that with pooled statistics",
            measured=gain.excess,
            bound=gain.BOUND,
            cost=f"its loss in eval mode is higher by {gain.loss:.4g} (+- {gain.error:.2g} over "
            f"{counted(len(gain.own), 'batch', 'batches')}); a mean lies up to {worst:.2g} standard deviations off",
            fix="let it follow in its buffers too, or recalibrate it: normscope.surgery.recalibrate(companion, loader)",
            details={"shift": worst},
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Recalibrate the companion."""
        done = 0
        for companion in Evidence(case).companions:
            if any(place.startswith(f"{companion.name}.") for place in finding.places):
                done += recalibrate_companion(case, companion)
        return f"recalibrated {counted(done, 'norm')} of the companion on the training data: save it with the model"


def _follows(evidence: Evidence, companion: Companion) -> bool:
    """Whether a companion has to do with the weights that the model has now."""
    if is_copy(companion, evidence.case.model):
        return True
    if any(id(parameter) in evidence.training.moved for parameter in companion.module.parameters()):
        return True
    source = tracking(evidence.case.model.get_submodule(companion.part))
    return all(
        _same_statistics(norm, source[path]) or _initial(norm) for path, norm in tracking(companion.module).items()
    )


def _same_statistics(a: Any, b: Any) -> bool:
    return torch.equal(a.running_mean, b.running_mean) and torch.equal(a.running_var, b.running_var)


def _initial(norm: Any) -> bool:
    return not bool(norm.running_mean.any()) and bool((norm.running_var == 1).all())


def _reads_its_statistics(evidence: Evidence, companion: Companion) -> bool:
    seen = [*evidence.training.beside, *evidence.training.calls]
    calls = [call for call in seen if call.path.startswith(f"{companion.name}.")]
    return not calls or any(not call.training for call in calls)
