"""How much of a gradient is noise."""

import math
from collections.abc import Iterator

from normscope._errors import UsageError
from normscope.modules.batches import batch_size, part
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes._vectors import norm
from normscope.probes.remarks import Readings, Remark, Urgency, amount
from normscope.records import Record

_NOISY = 100.0  # samples: below that any usual batch is large enough


class GradientNoise(AbstractProbe):
    r"""Gradient noise scale, from two batch sizes.

    ## Measures
    With $G_B$ the gradient on the step's batch of B samples and $G_b$ those on its ``parts`` equal parts of
    b samples (what remains is in $G_B$ only), all at the parameters with which the step began:

    - ``gradient_square``: $(B \lVert G_B\rVert^2 - b\,\overline{\lVert G_b\rVert^2}) / (B - b)$, the squared
      length of the true gradient, without bias;
    - ``gradient_variance``: $(\overline{\lVert G_b\rVert^2} - \lVert G_B\rVert^2) / (1/b - 1/B)$, the trace of
      the covariance of one sample's gradient, without bias;
    - ``noise_scale``: the second over the first, in samples: the batch size at which noise and gradient are alike.

    ## Cost
    One forward and backward pass on the batch, shared with other probes, and one on all its parts together.

    ## Reads wrongly when
    The loss is not a mean over samples. With batch norm in train mode the loss of a smaller batch is another function,
    of noisier statistics: its noise is counted in, and ``gradient_square`` is then not that of one loss. A single
    reading is noisy, ``gradient_square`` may come out negative, and a ratio has a bias: average both over steps before
    dividing.

    Args:
        parts: Number of parts.
        axis: Axis of the samples in the tensors of the batch; those not as long as the first one are left whole.
        every: Read at every so-many-th step; None takes the scope's schedule.

    Raises:
        UsageError: Fewer than two parts.
    """

    CODE = "gradient_noise"
    SHOWS = "noise_scale"
    QUESTION = "gradient"
    NOTHING = "every batch read was too small to be cut into parts"
    SOURCES = ("McCandlish et al. 2018, An Empirical Model of Large-Batch Training, appendix A.1 (arXiv:1812.06162)",)
    REPLAYS = True

    def __init__(self, *, parts: int = 2, axis: int = 0, every: int | None = None) -> None:
        super().__init__(every=every)
        if parts < 2:
            raise UsageError(f"{self.CODE}: parts={parts} must be 2 or more")
        self.parts, self.axis = parts, axis

    def read(self, step: Step) -> Iterator[Record]:
        """Take the gradients, and yield the estimates."""
        replay, batch = step.replay, step.replay.batch
        large = batch_size(batch, self.axis)
        if large < self.parts:  # the last batch of an epoch, say: the others are read
            return
        small = large // self.parts
        pieces = [part(batch, index, self.parts, self.axis) for index in range(self.parts)]
        whole = norm(replay.origin().gradient) ** 2
        squares = []
        for piece in pieces:
            replay.reset()
            squares.append(norm(replay.with_batch(piece).evaluate().gradient) ** 2)
        mean = math.fsum(squares) / self.parts
        square = (large * whole - small * mean) / (large - small)
        variance = (mean - whole) / (1 / small - 1 / large)
        yield self.record(step, "", "gradient_square", square)
        yield self.record(step, "", "gradient_variance", variance)
        yield self.record(step, "", "noise_scale", variance / square if square else math.nan, "samples")

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of the noise scale, from the means of both its parts over the later readings."""
        square = readings.late("gradient_square").get("")
        variance = readings.late("gradient_variance").get("")
        if square is None or variance is None:
            return
        if square <= 0 < variance:
            yield Remark(
                "The gradient drowns in its noise: its squared length, less the noise, is not positive.",
                Urgency.NOTABLE,
                0.5,
                ("",),
                "gradient_square",
            )
        elif square > 0 and variance / square > _NOISY:
            says = f"A batch of fewer than {amount(variance / square)} samples has more noise than gradient."
            yield Remark(says, Urgency.NOTABLE, 0.0, ("",), "noise_scale")
