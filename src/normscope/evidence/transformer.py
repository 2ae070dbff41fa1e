"""What rules look at in networks of residual blocks: streams, attention, and what the first update does."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.evidence.arms import reached_objects
from normscope.evidence.attention import Attention, watch_attention
from normscope.evidence.case import Case, number_of
from normscope.evidence.other_norms import OtherNorm, other_norms
from normscope.evidence.residuals import Residuals, watch_residuals
from normscope.evidence.sandbox import batches, sandbox
from normscope.modules.batches import tensors
from normscope.modules.call import set_mode
from normscope.modules.hooks import Hook
from normscope.usercode import users_code


class NotShownError(UsageError):
    """A rule asks for what cannot be measured here: it is not run, and that is said."""


class TransformerEvidence:
    """The part of the evidence that concerns residual streams and attention."""

    case: Case
    batches: int
    _told: Callable[[str], None]

    @cached_property
    def other_norms(self) -> dict[str, OtherNorm]:
        """The norms of classes of other libraries, or of the user's own, that are none of torch's."""
        return other_norms(self.case.model)

    @cached_property
    def residuals(self) -> Residuals:
        """The residual streams of the model, over a training batch."""
        self._told("residual streams")
        return watch_residuals(self.case, 1, tuple(self.other_norms))

    @cached_property
    def attention(self) -> dict[str, Attention]:
        """What the softmax of each attention makes of its logits, over training batches."""
        self._told("the logits of attention")
        return watch_attention(self.case, max(1, min(2, self.batches)))

    @cached_property
    def first_update(self) -> tuple[float, bool]:
        """By how much a training step changes the outputs for its batch, of their length; whether rates changed.

        The outputs are taken without dropout.

        Raises:
            NotShownError: Nothing updates the model, or its outputs have no values to compare.
        """
        self._told("what the first update changes")
        case = self.case
        if case.step is None and case.optimizer is None:
            raise NotShownError("there is no optimizer and no step: what an update does cannot be seen")
        held = [case.optimizer, *(each for _, each in reached_objects(case))]
        optimizers = [each for each in held if isinstance(each, Optimizer)]
        with sandbox(case):
            batch = next(batches(case.loader, 1))
            before, rates = self._outputs(batch), _rates(optimizers)
            with users_code("training step 0"), torch.enable_grad():
                _step(case, batch)
            rising = _rates(optimizers) != rates
            after = self._outputs(batch)
        if not before or [x.shape for x in before] != [x.shape for x in after]:
            raise NotShownError("the model puts out no tensors to compare before and after an update")
        apart = sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))
        length = sum(float(b.square().sum()) for b in before)
        return (apart / length) ** 0.5 if length else 0.0, rising

    def _outputs(self, batch: Any) -> list[Tensor]:
        """Return what the model puts out for a batch in eval mode, but for single numbers, which may be losses."""
        found: list[Tensor] = []

        def look(_module: Any, _args: Any, output: Any) -> None:
            held = tensors(output) or tensors(getattr(output, "__dict__", ()))
            found[:] = [x.detach().double() for x in held if x.is_floating_point() and x.ndim]

        with sandbox(self.case):
            set_mode(self.case.model, False)
            self.case.model.register_forward_hook(Hook(look))
            with users_code("the loss of batch 0 of the loader"):
                self.case.loss_of(self.case.model, batch, evaluation=True)
        return found


def _rates(optimizers: list[Optimizer]) -> list[Any]:
    return [float(group["lr"]) for each in optimizers for group in each.param_groups if "lr" in group]


def _step(case: Case, batch: Any) -> None:
    if case.step is not None:
        case.step(case.model, batch)
        return
    assert case.optimizer is not None
    case.optimizer.zero_grad()
    number_of(case.loss_fn(case.model, batch), case.loss_fn, descended=True).backward()
    case.optimizer.step()
