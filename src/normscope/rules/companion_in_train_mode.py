"""Modules through which nothing is trained, and whose statistics move."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.evidence import Case, Evidence, Finding, NormCall, Severity, examples, with_companion
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule
from normscope.surgery import freeze


def _taught(net: Any, *, mode: bool = True, again: bool = False) -> Case:
    """A student that learns from a teacher, which is a copy of it and not trained.

    Args:
        net: The network.
        mode: The mode of the teacher.
        again: Whether each step puts it into train mode anew.
    """

    def losses(model: Any, teacher: Any, batch: Any) -> Iterator[Tensor]:
        if again:
            teacher.train()
        with torch.no_grad():
            target = teacher(batch[0]).softmax(1)
        yield examples.loss_fn(model, batch) + nn.functional.cross_entropy(model(batch[0]), target)

    case = examples.healthy(net)
    teacher = copy.deepcopy(case.model).requires_grad_(False).train(mode)
    return with_companion(case, losses, companion=teacher)


class _Pair(nn.Module):
    """A network and its target in one model, as in methods that learn from two views."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.online = net()
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.target(x)
        return self.online(x)


def _pair(net: Any, *, quiet: bool = False) -> Case:
    def still(model: Any) -> None:
        if quiet:
            freeze(model.target)

    return examples.healthy(lambda: _Pair(net), shape=examples.SHAPES[net], change=still)


class CompanionInTrainMode(AbstractRule):
    r"""A teacher or target runs in train mode though nothing is trained through it.

    ## Finds
    During a few of the user's own training steps, norms of a module are only called with gradients switched off, and
    their running statistics change; and no optimizer trains the module. It is a module beside the model that the loss
    or the step reaches (a teacher, a target network), or a part of the model that has a twin which is trained, or a
    part whose parameters an optimizer holds and never had a gradient for. A module beside the model that is no copy of
    it and whose parameters require a gradient is judged only where the step is given: its own optimizer is seen there.
    It is an information where the module's parameters follow the model in these steps, as in Mean Teacher, MoCo and
    BYOL: their published code runs it in train mode on purpose. What its statistics are worth then, NS131 judges.

    Calibrated over four seeds of six networks: planted defects found, 48 of 48; false alarms on 216 set-ups with a
    second model in eval mode, none, and on 47 healthy set-ups under eight seeds, none.

    ## Why it hurts
    ``torch.no_grad()`` and ``requires_grad=False`` do not stop batch norm. In train mode the module normalizes by the
    batch at hand, so that its output for a sample depends on the other samples, dropout in it is active, and its
    running statistics follow these passes. Whoever takes it for a fixed function, or evaluates it later, gets another.
    Some methods want it so: MoCo, BYOL and the code of Mean Teacher normalize the teacher by the batch on purpose.

    ## Fix
    Unsafe: ``surgery.freeze`` keeps the norms of the module in eval mode, through ``train()`` too. Where the method
    wants statistics of the batch in it, leave it and say so: ``Case(ignore={"NS132": "a reason"})``.
    """

    CODE = "NS132"
    SLUG = "companion-in-train-mode"
    SEVERITY = Severity.WARNING
    HOLDS = True
    NEEDS = ("loop",)
    KEEPS = ("training", "evaluation")
    SOURCES = ("He et al. 2020, section 3.3", "CuriousAI/mean-teacher#9", "lucidrains/byol-pytorch#31")
    SICK = (
        examples.Planted(partial(_taught, examples.mlp), ["step.companion.1", "step.companion.4", "step.companion.7"]),
        examples.Planted(partial(_taught, examples.cnn, again=True), ["step.companion.1", "step.companion.5"]),
        examples.Planted(partial(_pair, examples.mlp), ["target.1", "target.4", "target.7"]),
        examples.Planted(partial(_pair, examples.cnn), ["target.1", "target.5"]),
    )
    WELL = (
        partial(_taught, examples.mlp, mode=False),
        partial(_taught, examples.cnn, mode=False),
        partial(_pair, examples.mlp, quiet=True),
    )
    NEAR = (examples.Near(lambda mode: _taught(examples.mlp, mode=mode), found=True, quiet=False),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look for norms that are called without gradient alone, and change."""
        seen = evidence.training
        if not any(call.updated and not call.grad for call in (*seen.calls, *seen.beside)):
            return
        for name, module in evidence.outside.items():
            calls = [call for call in seen.beside if call.path == name or call.path.startswith(f"{name}.")]
            trained = any(id(parameter) in evidence.trained for parameter in module.parameters())
            if not trained and (self._is_no_other_networks(evidence, name, module)):
                yield from self._of(evidence, name, calls)
        own = [call for call in seen.calls if self._is_untrained_part(evidence, call.path)]
        yield from self._of(evidence, "", own)

    @staticmethod
    def _is_no_other_networks(evidence: Evidence, name: str, module: nn.Module) -> bool:
        """Whether a module beside the model is not trained in a loop that the case does not show."""
        if evidence.case.step is not None or not any(p.requires_grad for p in module.parameters()):
            return True
        return any(companion.name == name for companion in evidence.companions)

    @staticmethod
    def _is_untrained_part(evidence: Evidence, path: str) -> bool:
        """Whether a norm of the model lies in a twin of a part that is trained, or never had a gradient."""
        if path in evidence.frozen_by_mode:  # NS133's
            return False
        inside = [c.name for c in evidence.companions if c.name in evidence.modules]
        if any(path.startswith(f"{name}.") for name in inside):
            return True
        state = getattr(evidence.case.optimizer, "state", None) or {}
        own = list(evidence.modules[path].parameters())
        return bool(own and state) and all(id(p) in evidence.optimised and not state.get(p) for p in own)

    @staticmethod
    def _follows_the_model(evidence: Evidence, name: str, places: Sequence[str]) -> bool:
        """Whether steps change its parameters though nothing is trained through it: they are averages."""
        modules = [evidence.outside[name]] if name else [evidence.modules[path] for path in places]
        own = {id(parameter) for module in modules for parameter in module.parameters()}
        return bool(own & evidence.training.moved)

    def _of(self, evidence: Evidence, name: str, calls: list[NormCall]) -> Iterable[Finding]:
        with_gradient = {call.path for call in calls if call.grad or call.recomputed}
        changes = [call for call in calls if call.updated and call.path not in with_gradient]
        if not changes:
            return
        places = list(dict.fromkeys(call.path for call in changes))
        averaged = self._follows_the_model(evidence, name, places)
        whole = name or (places[0].partition(".")[0] if len({p.partition(".")[0] for p in places}) == 1 else "")
        yield self.finding(
            f"{f'{whole} is' if whole else 'parts of the model are'} in train mode, and nothing is trained through "
            f"{'it' if whole else 'them'}: the running statistics of {counted(len(places), 'norm')} changed at "
            f"{counted(len(changes), 'call')} of {counted(evidence.training.steps, 'training step')}, all without "
            "gradient",
            places,
            quantity="changes of running statistics in passes without gradient",
            measured=float(len(changes)),
            bound=0.0,
            cost="what it puts out for a sample depends on the other samples of the batch, and its running statistics "
            "follow these passes",
            fix="unless the method wants statistics of the batch there, as MoCo and BYOL do: put it in eval mode, or "
            "freeze it so that train() does not undo that, normscope.surgery.freeze(module)",
            severity=Severity.INFO if averaged else None,
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Freeze the norms of the finding."""
        inner = dict(case.model.named_modules())
        for name, module in Evidence(case).outside.items():
            inner |= {f"{name}.{path}" if path else name: each for path, each in module.named_modules()}
        done = sum(len(freeze(inner[place]).done) for place in finding.places)
        return f"froze {counted(done, 'norm')}"
