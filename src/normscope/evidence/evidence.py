"""What the rules look at: measured once, shared by all of them, and only if one asks."""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.evidence.arms import reached_objects
from normscope.evidence.case import Case
from normscope.evidence.companions import Companion, Gain, find_companions, gain_of, outer_modules
from normscope.evidence.gap import Gap, measure_gap
from normscope.evidence.losses import mean_loss
from normscope.evidence.moments import FEWEST, Moments, spread_out, take_moments, worst_excess
from normscope.evidence.other_norms import buffers_of
from normscope.evidence.passes import example
from normscope.evidence.pooling import Statistics, pooled, put_statistics
from normscope.evidence.sandbox import sandbox
from normscope.evidence.steps import Training, watch_training
from normscope.evidence.streams import Streams, find_streams
from normscope.evidence.transformer import NotShownError as NotShownError, TransformerEvidence
from normscope.evidence.untrained import as_made, has_learnt
from normscope.evidence.wiring import Wiring, watch_wiring
from normscope.modules.call import set_mode
from normscope.modules.sites import tracking
from normscope.surgery import is_frozen
from normscope.surgery.pairs import Search, search


class Evidence(TransformerEvidence):
    """A case, and everything that was measured on it. Each measurement runs at its first use, and leaves no trace.

    Attributes:
        case: The set-up.
        batches: Over how many batches statistics and losses are taken.
        modules: Every module by its first qualified name.
        norms: The batch norms among them (``torch``'s kinds and subclasses of theirs), in order of registration.
        tracking: Those that keep running statistics.
        entry: Whether each module was in train mode as the case was handed over.
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
        self.entry = {path: module.training for path, module in self.modules.items()}
        self._told = told or (lambda what: None)

    def frozen(self, module: Module) -> bool:
        """Whether a norm has been frozen by this library: it uses and keeps its running statistics in every mode."""
        return is_frozen(module)

    @cached_property
    def untrained(self) -> bool:
        """Whether nothing shows that the model was trained: norms as made, an optimizer without state, no low loss."""
        buffers = {path: dict(module.named_buffers(recurse=False)) for path, module in self.tracking.items()}
        buffers |= self.buffers_elsewhere(moving=True)
        if not buffers or getattr(self.case.optimizer, "state", None) or not as_made(buffers):
            return False
        parameters = [parameter for module in self.norms.values() for parameter in module.parameters(recurse=False)]
        if parameters and all(bool((p == 1).all()) or not bool(p.any()) for p in parameters):
            return True
        self._told("whether the network has learnt")
        return not has_learnt(self.case)

    def buffers_elsewhere(self, *, moving: bool) -> dict[str, dict[str, Any]]:
        """Return the running statistics of ``other_norms``, by torch's names of buffers.

        Args:
            moving: Whether norms are left out that never move them.
        """
        return buffers_of(self.other_norms, moving=moving)

    @cached_property
    def updating(self) -> dict[str, Any]:
        """The norms whose running statistics training steps change: tracking, not frozen, in train mode in the steps.

        A norm that the steps do not call is taken by the mode in which it was handed over; so are all where no step can
        be made.
        """
        modes: dict[str, bool] = {}
        with suppress(UsageError):
            for call in self.training.calls:
                modes[call.path] = modes.get(call.path, False) or call.training
        return {
            path: module
            for path, module in self.tracking.items()
            if modes.get(path, self.entry[path]) and not self.frozen(module)
        }

    @cached_property
    def held(self) -> set[str]:
        """The tracking norms whose running statistics are to stay: frozen, or in eval mode in a model that trains.

        In eval mode as they were handed over, whatever the steps do then; or in all calls by the steps.
        """
        still = self.frozen_by_mode | {path for path, module in self.tracking.items() if self.frozen(module)}
        if self.updating or any(map(self.trained_in, self.modules)):
            still |= self.tracking.keys() - self.updating.keys()
        return still

    @cached_property
    def frozen_by_mode(self) -> set[str]:
        """The tracking norms that were handed over in eval mode, in a model of which another part was in train mode."""
        if not any(self.entry.values()):
            return set()
        return {path for path, module in self.tracking.items() if not self.entry[path] and not self.frozen(module)}

    def trained_in(self, path: str) -> bool:
        """Whether a module is in train mode in the passes of training that record gradients.

        Where the step is the user's own, it is asked what it does; else the modes are those of the hand-over.

        Args:
            path: Qualified name of the module.
        """
        seen = {}
        if self.case.step is not None or "training" in vars(self):
            with suppress(UsageError):
                seen = self.training.modes
        return seen.get(path, self.entry[path])

    def take_modes(self) -> None:
        """Put the model into the modes in which its step trains it, inside a sandbox that puts it back."""
        for path, mode in {path: self.trained_in(path) for path in self.modules}.items():
            self.modules[path].training = mode

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
        return watch_training(self.case, max(3, min(4, self.batches)), beside=self.outside)

    @cached_property
    def outside(self) -> dict[str, Module]:
        """The modules beside the model, by name: the averaged one, and those that the functions of the case reach."""
        return outer_modules(self.case.model, [("averaged", self.case.averaged), *self._reached])

    @cached_property
    def _reached(self) -> list[tuple[str, Any]]:
        return reached_objects(self.case)

    @cached_property
    def trained(self) -> set[int]:
        """The ``id`` of every parameter that an optimizer, of the case or reached by its functions, updates."""
        optimizers = [each for _, each in self._reached if isinstance(each, Optimizer)]
        held = {id(p) for each in optimizers for group in each.param_groups for p in group["params"] if p.requires_grad}
        return held | self.optimised

    @cached_property
    def companions(self) -> list[Companion]:
        """The modules that are built as the model is, or as a part of it, and that no optimizer trains."""
        return find_companions(self.case.model, self.outside, self.trained)

    def is_costly(self, gain: Gain) -> bool:
        """Whether a second model's own statistics cost more than a lag does, than noise, and than those of the model.

        Args:
            gain: What the second model gains by statistics taken anew.
        """
        return gain.is_large and gain.excess > gain.BOUND * max(1.0, self._own_gain.excess)

    @cached_property
    def _own_gain(self) -> Gain:
        return gain_of(self.case, Companion("", "", self.case.model), self.batches)

    @property
    def _by_batch(self) -> list[str] | None:
        """The norms that normalize by the batch in training; None for all, also where training uses none so."""
        return list(self.updating) if 0 < len(self.updating) < len(self.tracking) else None

    @cached_property
    def wiring(self) -> Wiring:
        """What reads what between norms, layers and non-linearities, and what passes these, over training batches."""
        self._told("the flow of values")
        return watch_wiring(self.case, max(1, min(4, self.batches)))

    @cached_property
    def statistics(self) -> Statistics:
        """Pooled statistics of the norms over training batches, dropout off: of those that update, if there are any."""
        self._told("statistics of the training data")
        return pooled(self.case, self.batches, only=self._by_batch)

    @cached_property
    def statistics_with_dropout(self) -> Statistics:
        """The same with dropout and other noise on."""
        self._told("statistics of the training data under dropout")
        return pooled(self.case, self.batches, dropout=True, only=self._by_batch)

    @cached_property
    def gap(self) -> Gap:
        """The loss of evaluation less that of training, taken apart."""
        only = list(self.updating) if self.tracking else []
        statistics, untrained = self.statistics if only else None, self.untrained
        self._told("the losses of training and evaluation")
        return measure_gap(self.case, max(1, min(4, self.batches)), statistics, untrained=untrained, only=only)

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
    def moments(self) -> dict[str, list[Moments]]:
        """What each norm that training uses is given, call by call, over batches from all along the loader."""
        updating = self.updating  # also those that a step puts in train mode
        self._told("moments of batches")
        used = {
            path: module
            for path, module in self.norms.items()
            if path in updating or (module.training and not self.frozen(module))
        }
        return take_moments(self.case, used, self.looked_at)

    @cached_property
    def excess(self) -> dict[str, tuple[float, float]]:
        """Return by norm by how much its batch means vary too much: ``excess_of_means``, at the worst of its places."""
        return worst_excess(self.moments, None if self.streams is None else self.streams.of_batch)

    @cached_property
    def looked_at(self) -> list[int]:
        """The numbers of the batches that ``moments`` are of."""
        return spread_out(self.case.loader, max(FEWEST, self.batches))

    @cached_property
    def streams(self) -> Streams | None:
        """Kinds of batches that alternate in the loader; None if there are none."""
        return find_streams(
            {path: calls for path, calls in self.moments.items() if path in self.updating},
            {path: module.eps for path, module in self.norms.items()},
        )

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
