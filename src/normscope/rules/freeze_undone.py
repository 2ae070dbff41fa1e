"""Norms handed over in eval mode that the training step puts back into train mode."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from normscope.evidence import Case, Evidence, Finding, NotShownError, Severity, examples
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule
from normscope.surgery import freeze


def _eval_norms(model: nn.Module) -> None:
    for norm in examples.norms(model):
        norm.eval()


def _eval_body(model: nn.Module) -> None:
    """Freeze a backbone as a script does once, before its loop: eval mode, and no gradients."""
    *body, _ = model.children()
    for module in body:
        module.eval().requires_grad_(False)


def _stepped(net: Any, change: Callable[[nn.Module], Any], *, undo: Callable[[nn.Module], Any]) -> Case:
    """A set-up whose step begins by putting the model into some modes, as loops do at each epoch."""

    def losses(model: nn.Module, batch: Any) -> Iterator[Tensor]:
        undo(model)
        yield examples.loss_fn(model, batch)

    return examples.stepped(examples.healthy(net, change=change), losses)


def _train(model: nn.Module) -> None:
    model.train()


def _train_and_freeze(model: nn.Module) -> None:
    model.train()
    _eval_norms(model)


def _freeze(model: nn.Module) -> None:
    freeze(model)


def _all_in_eval(model: nn.Module) -> None:
    model.eval()


def _one_pass_in_train_mode(training: bool) -> Case:
    """A norm that was handed over in eval mode, and a step that runs it in one of both modes."""
    norm = examples.batch_norm(mean=3.0, variance=4.0)
    case = examples.alone(norm, [examples.two_values(3.0, 2.0)] * 4, then=[nn.Linear(12, 12)])
    norm.eval()

    def losses(model: Any, batch: Tensor) -> Iterator[Tensor]:
        model[0].train(training)
        yield examples.mean_square(model, batch)

    return examples.stepped(case, losses)


class FreezeUndone(AbstractRule):
    r"""Norms are handed over in eval mode, and the training step puts them back into train mode.

    ## Finds
    A few of the user's own training steps are made. A norm is found if it was in eval mode before them, in a model of
    which another part was in train mode, and its running statistics change in the steps. A model that is handed over
    in eval mode as a whole says nothing about its norms, and a step may put it into train mode.
    Calibrated over four seeds of six networks: planted defects found, 48 of 48; false alarms on 48 set-ups whose freeze
    holds or that are in eval mode as a whole, none, and on 47 healthy set-ups under eight seeds, none.

    ## Why it hurts
    ``norm.eval()`` holds until the next ``model.train()``, which most loops call at the start of each epoch. From then
    on the norm normalizes by the batch, and the statistics that were to be kept, those of the pretraining, are
    overwritten with those of the new data: with momentum 0.1, half of them in seven steps. The code reads as if the
    freeze held.

    ## Fix
    Unsafe: ``surgery.freeze`` keeps these norms in eval mode through ``model.train()``. The running statistics stay as
    they are: they are not recalibrated. Training then sees other features, those of the kept statistics.
    """

    CODE = "NS133"
    SLUG = "freeze-undone"
    SEVERITY = Severity.ERROR
    HOLDS = True
    NEEDS = ("loop",)
    KEEPS = ("evaluation",)
    SOURCES = ("facebookresearch/maskrcnn-benchmark#267", "pytorch/pytorch#86590")
    SICK = (
        partial(_stepped, examples.mlp, _eval_norms, undo=_train),
        partial(_stepped, examples.cnn, _eval_norms, undo=_train),
        partial(_stepped, examples.residual, _eval_body, undo=_train),
    )
    WELL = (
        partial(_stepped, examples.mlp, _eval_norms, undo=_train_and_freeze),
        partial(_stepped, examples.cnn, _freeze, undo=_train),
        partial(_stepped, examples.residual, _all_in_eval, undo=_train),
    )
    NEAR = (examples.Near(_one_pass_in_train_mode, found=True, quiet=False),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look which norms were in eval mode at first, and are updated."""
        if evidence.under_way:
            raise NotShownError("judges the modes in which a model is handed over, before a step: ns.check(...)")
        if not evidence.frozen_by_mode:
            return
        seen = evidence.training
        calls = [call for call in seen.calls if call.updated and call.path in evidence.frozen_by_mode]
        if not calls:
            return
        moved = {call.path for call in calls}
        places = [path for path in evidence.tracking if path in moved]
        yield self.finding(
            f"{counted(len(places), 'norm was', 'norms were')} in eval mode before training, yet running statistics "
            f"changed at {counted(len(calls), 'call')} of {counted(seen.steps, 'training step')}: the step puts "
            f"{'it' if len(places) == 1 else 'them'} back into train mode",
            places,
            quantity="changes of running statistics that were to be kept",
            measured=float(len(calls)),
            bound=0.0,
            cost="the kept statistics are overwritten with those of the training data, and the norms normalize by the "
            "batch while training",
            fix="freeze them so that model.train() does not undo it: normscope.surgery.freeze(model, only=[...])",
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Freeze the norms of the finding; their statistics stay."""
        report = freeze(case.model, only=list(finding.places))
        return f"froze {counted(len(report.done), 'norm')}, with the running statistics as they were handed over"
