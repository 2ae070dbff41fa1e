"""The loss on which the loop calls backward."""

from collections.abc import Iterator

import torch
from torch import Tensor

from normscope.modules.backward import on_backward
from normscope.modules.channels import to_floats
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes.remarks import Readings, Remark, Urgency, amount
from normscope.records import Record

_RISEN = 1.5  # times the lowest median of three readings in a row


class Loss(AbstractProbe):
    r"""Loss of the training step, as the loop computed it.

    ## Measures
    ``loss``: the sum of all scalars on which the loop called ``backward()`` during the step, without loss scale. Of
    several losses it is their sum, of micro-batches whose losses are divided by their number the mean.

    ## Cost
    A scalar a backward pass.

    ## Reads wrongly when
    The step has backward passes for other networks too (both sides of a GAN): they are in the sum. Gradients are taken
    by ``torch.autograd.grad``: then there is nothing to hear.

    Args:
        every: Read at every so-many-th step; None takes the scope's schedule.
    """

    CODE = "loss"
    QUESTION = "gradient"
    SHOWS = "loss"
    QUESTION = "gradient"
    BY_DEFAULT = True
    NOTHING = "the loop called backward() on no scalar"
    STREAMING = True
    SOURCES = ("PyTorch, torch.autograd.backward",)

    def watch(self, step: Step) -> None:
        """Listen to the backward passes of the step."""
        heard: list[Tensor] = step.notes(self).setdefault("heard", [])

        def hear(loss: Tensor) -> None:
            with torch.no_grad():
                heard.append(loss.clone())

        step.keep(on_backward(hear))

    def read(self, step: Step) -> Iterator[Record]:
        """Yield the sum of what was heard."""
        heard: list[Tensor] = step.notes(self)["heard"]
        if heard:
            yield self.record(step, "", "loss", sum(to_floats([loss.reshape(()) for loss in heard])) / step.scale)

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of a loss that is not finite, and of a loss that has risen."""
        if (step := readings.not_finite("loss").get("")) is not None:
            says = f"The loss is not finite, first at step {step:,}."
            yield Remark(says, Urgency.BROKEN, 0.99, ("",), "loss")
            return
        values = [value for _, value in readings.values.get("loss", {}).get("", ())]
        middles = [sorted(values[start : start + 3])[1] for start in range(len(values) - 2)]
        if len(middles) > 1 and min(middles) > 0 and middles[-1] > _RISEN * min(middles):
            says = f"The loss has risen from {amount(min(middles))}, its lowest, to {amount(middles[-1])}."
            yield Remark(says, Urgency.COSTLY, middles[-1] / min(middles) / 10, ("",), "loss")
