"""What the rules look at: measured once, shared by all of them, and only if one asks."""

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any

from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from normscope._errors import UsageError
from normscope.evidence.case import Case
from normscope.evidence.gap import Gap, measure_gap
from normscope.evidence.losses import mean_loss
from normscope.evidence.passes import example
from normscope.evidence.pooling import Statistics, pooled, put_statistics
from normscope.evidence.sandbox import sandbox
from normscope.evidence.steps import Training, watch_training
from normscope.evidence.untrained import as_made, has_learnt
from normscope.modules.call import set_mode
from normscope.modules.sites import tracking
from normscope.surgery import is_frozen
from normscope.surgery.pairs import Search, search


class NotShownError(UsageError):
    """A rule asks for what cannot be measured here: it is not run, and that is said."""


class Evidence:
    """A case, and everything that was measured on it. Each measurement runs at its first use, and leaves no trace.

    Attributes:
        case: The set-up.
        batches: Over how many batches statistics and losses are taken.
        modules: Every module by its first qualified name.
        norms: The batch norms among them (``torch``'s kinds and subclasses of theirs), in order of registration.
        tracking: Those that keep running statistics.
        sizes: How many samples the batches of a training that is under way have had, by size; empty in a check.
        under_way: Whether the training is going on: running statistics are still following the weights.

    Args:
        case: The set-up.
        batches: Over how many batches statistics and losses are taken.
        told: Called with what is being measured, in words.
        training: Steps that were seen already; left out, some are made and undone.
        sizes: As above; given where the training is under way.
        no_flow: Why the flow between layers cannot be followed, if it cannot.
    """

    def __init__(
        self,
        case: Case,
        *,
        batches: int = 10,
        told: Callable[[str], None] | None = None,
        training: Training | None = None,
        sizes: Mapping[int, int] | None = None,
        no_flow: str = "",
    ) -> None:
        self.case, self.batches = case, batches
        self.sizes, self.under_way, self._no_flow = dict(sizes or {}), sizes is not None, no_flow
        if training is not None:
            vars(self)["training"] = training  # in place of the cached property's first use
        self.modules: dict[str, Module] = dict(case.model.named_modules())
        self.norms: dict[str, Any] = {
            path: module for path, module in self.modules.items() if isinstance(module, _BatchNorm)
        }
        self.tracking: dict[str, Any] = tracking(case.model)
        self._told = told or (lambda what: None)

    def frozen(self, module: Module) -> bool:
        """Whether a norm has been frozen by this library: it uses and keeps its running statistics in every mode."""
        return is_frozen(module)

    @cached_property
    def untrained(self) -> bool:
        """Whether nothing shows that the model was trained: norms as made, an optimizer without state, no low loss."""
        buffers = {path: dict(module.named_buffers(recurse=False)) for path, module in self.tracking.items()}
        if not buffers or getattr(self.case.optimizer, "state", None) or not as_made(buffers):
            return False
        parameters = [parameter for module in self.norms.values() for parameter in module.parameters(recurse=False)]
        if parameters and all(bool((p == 1).all()) or not bool(p.any()) for p in parameters):
            return True
        self._told("whether the network has learnt")
        return not has_learnt(self.case)

    @property
    def updating(self) -> dict[str, Any]:
        """The norms whose running statistics a training step would change: in train mode, tracking, not frozen."""
        return {path: module for path, module in self.tracking.items() if module.training and not self.frozen(module)}

    @cached_property
    def optimised(self) -> set[int]:
        """The ``id`` of every parameter that the optimizer updates; of all that require a gradient if there is none."""
        if self.case.optimizer is None:
            return {id(parameter) for parameter in self.case.model.parameters() if parameter.requires_grad}
        return {id(p) for group in self.case.optimizer.param_groups for p in group["params"] if p.requires_grad}

    @cached_property
    def training(self) -> Training:
        """A few steps of training, watched and undone."""
        self._told("training steps")
        return watch_training(self.case, max(3, min(4, self.batches)))

    @cached_property
    def statistics(self) -> Statistics:
        """Pooled statistics of every tracking norm over training batches, dropout off."""
        self._told("statistics of the training data")
        return pooled(self.case, self.batches)

    @cached_property
    def statistics_with_dropout(self) -> Statistics:
        """The same with dropout and other noise on."""
        self._told("statistics of the training data under dropout")
        return pooled(self.case, self.batches, dropout=True)

    @cached_property
    def gap(self) -> Gap:
        """The loss of evaluation less that of training, taken apart."""
        statistics, untrained = self.statistics if self.tracking else None, self.untrained
        self._told("the losses of training and evaluation")
        return measure_gap(self.case, max(1, min(4, self.batches)), statistics, untrained=untrained)

    def loss_with_pooled(self, paths: Collection[str]) -> float:
        """Return the loss of evaluation with pooled statistics in some norms, and the running ones in the others.

        Args:
            paths: The norms.
        """
        case = self.case
        loader = case.loader if case.eval_loader is None else case.eval_loader
        statistics = self.statistics
        self._told("the loss of evaluation with statistics of the training data")
        with sandbox(case):
            set_mode(case.model, False)
            put_statistics(case.model, statistics, only=paths)
            return mean_loss(case, loader, max(1, min(4, self.batches)), evaluation=True)

    @cached_property
    def flow(self) -> Search:
        """What each norm and linear layer reads, and who reads it: see ``surgery.pairs.Search``."""
        if self._no_flow:
            raise NotShownError(self._no_flow)
        self._told("the flow between layers")
        inputs = self.training.inputs
        with sandbox(self.case):
            if inputs is None:
                return search(self.case.model)
            try:
                return search(self.case.model, example(self.case.model, inputs))
            except Exception:  # the call cannot be repeated outside of the loop: what is seen without it has to do
                return search(self.case.model)
