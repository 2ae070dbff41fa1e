"""Norms that are meant to be frozen and go on counting."""

from collections.abc import Iterable
from functools import partial

from torch import nn

from normscope.evidence import Case, Evidence, Finding, Severity, examples
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule
from normscope.surgery import freeze


def _freeze_parameters(model: nn.Module) -> None:
    """Freeze as is often done: all parameters but the head's, and nothing else."""
    *body, head = model.children()
    for module in body:
        module.requires_grad_(False)
    head.requires_grad_(True)


def _freeze_well(model: nn.Module) -> None:
    _freeze_parameters(model)
    freeze(model)


def _freeze_affine(model: nn.Module, names: tuple[str, ...] = ("weight", "bias")) -> None:
    for norm in examples.norms(model):
        for name in names:
            getattr(norm, name).requires_grad_(False)


def _partly_frozen(names: tuple[str, ...]) -> Case:
    return examples.healthy(examples.mlp, trained=0, change=partial(_freeze_affine, names=names))


def _eval_norms(model: nn.Module) -> None:
    _freeze_parameters(model)
    for norm in examples.norms(model):
        norm.eval()


class FrozenButDrifting(AbstractRule):
    r"""Norms whose parameters are frozen go on changing their running statistics.

    ## Finds
    A few training steps are made. A norm is found if its running statistics change although none of its parameters is
    trained: its weight and bias have ``requires_grad=False`` or are in no group of an optimizer; of a norm without
    weight and bias, the parameters of the module that holds it. Of a norm that was handed over in eval mode NS133
    speaks, and of a target in the model that is a copy of what is trained NS132.

    ## Why it hurts
    ``requires_grad=False`` does not touch buffers. A pretrained backbone that is "frozen" so is normalized by its batch
    while training, and its running statistics move to the new data: the features that the head learns on are not those
    that it is evaluated on, and the backbone is no longer the one that was loaded.

    ## Fix
    Unsafe: ``surgery.freeze`` puts these norms in eval mode and keeps them there through ``model.train()``. Training
    then sees other features, those of the pretrained statistics.
    """

    CODE = "NS101"
    SLUG = "frozen-but-drifting"
    SEVERITY = Severity.ERROR
    HOLDS = True
    KEEPS = ("evaluation",)
    SOURCES = ("pytorch/pytorch#86590", "pytorch/pytorch#66073", "Lightning-AI/pytorch-lightning#15063")
    SICK = (
        partial(examples.healthy, examples.mlp, change=_freeze_parameters),
        partial(examples.healthy, examples.cnn, change=_freeze_affine),
        partial(examples.healthy, examples.residual, change=_freeze_parameters),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(examples.healthy, examples.cnn, change=_freeze_well),
        partial(examples.healthy, examples.residual, change=_eval_norms),
    )
    NEAR = (examples.Near(_partly_frozen, found=("weight", "bias"), quiet=("weight",)),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look which norms count without learning."""
        drifting = {
            path
            for path in evidence.updating.keys() - evidence.frozen_by_mode  # of those NS133 speaks
            if (own := _parameters(evidence, path)) and not any(id(p) in evidence.optimised for p in own)
        }
        if not drifting:
            return
        moved = {call.path for call in evidence.training.calls if call.updated} & drifting
        places = [path for path in evidence.updating if path in moved and self._is_untrained(evidence, path)]
        if not places:
            return
        calls = [call for call in evidence.training.calls if call.path in places and call.updated]
        yield self.finding(
            f"{counted(len(places), 'norm trains', 'norms train')} no parameter, yet running statistics changed at "
            f"{counted(len(calls), 'call')} of "
            f"{counted(evidence.training.steps, 'training step')}",
            places,
            quantity="changes of running statistics",
            measured=float(len(calls)),
            bound=0.0,
            cost="they normalize by the batch while training, and evaluation meets statistics never trained on",
            fix="freeze them so that model.train() does not undo it: normscope.surgery.freeze(model, only=[...])",
        )

    @staticmethod
    def _is_untrained(evidence: Evidence, path: str) -> bool:
        """Whether no other optimizer trains a norm, and it is not a target's in the model, of which NS132 speaks."""
        if any(id(parameter) in evidence.trained for parameter in _parameters(evidence, path)):
            return False
        inside = any(path.startswith(f"{each.name}.") for each in evidence.companions)
        return not inside or any(call.grad for call in evidence.training.of(path))

    def repair(self, case: Case, finding: Finding) -> str:
        """Freeze the norms of the finding."""
        report = freeze(case.model, only=list(finding.places))
        return f"froze {counted(len(report.done), 'norm')}"


def _parameters(evidence: Evidence, path: str) -> list[nn.Parameter]:
    """Return the parameters of a norm, or of the module that holds it where it has none."""
    module = evidence.modules[path]
    return list(module.parameters(recurse=False)) or list(evidence.modules[path.rpartition(".")[0]].parameters())
