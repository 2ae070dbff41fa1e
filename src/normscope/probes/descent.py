"""Whether the update went down the loss it was made for, and how large it could have been."""

import math
from collections.abc import Iterator

from normscope.probes._hessian import Hessian
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes._vectors import difference, dot, norm
from normscope.probes.remarks import Readings, Remark, Theory, Urgency, decades, percent, sentence, times
from normscope.records import Record

_RAISED = 0.2  # of the readings; some such steps are in every training with noise
_TOO_LONG = 1.0  # in safe steps


class Descent(AbstractProbe):
    r"""Safe step, predicted and actual decrease of the loss by the update.

    ## Measures
    On the step's own batch, with the same random numbers, g and H at $\theta$, the parameters with which the
    step began, and $d = \theta' - \theta$ the update that the optimizer really made, for the whole model:

    - ``safe_step`` $2\lVert g\rVert^2 / g^T H g$: a longer step along the gradient raises the loss of the
      quadratic model; infinite where $g^T H g \le 0$;
    - ``step_to_safe`` $\eta\, g^T H g / 2\lVert g\rVert^2$, the learning rate over it: finite, and beyond 1
      where the step is too long;
    - ``loss``, ``loss_after``, ``actual_decrease`` $L(\theta) - L(\theta')$, and ``raised``, 1 where the loss
      rose, else 0: its mean is the share of steps that raised the loss on their own batch;
    - ``linear_decrease`` $-g^T d$ and ``predicted_decrease`` $-g^T d - \tfrac12 d^T H d$;
    - ``decrease_ratio``, actual over predicted decrease: 1 where the quadratic model is right; and
      ``linear_decrease_ratio``, actual over linear.

    ## Cost
    In plain steps: 1 for the graph of the gradient (shared with other probes), two Hessian-vector products of 1.4
    (linear layers) to 3.2 (convolutions), the first shared, and 1/3 for the loss after.

    ## Reads wrongly when
    The loss is accumulated over several batches before the update: then ``batch`` is not what the update was made for.
    Weight decay, momentum and clipping are in d but not in g: ``safe_step`` is of the plain gradient. In float32 a
    decrease below 1e-6 of the loss is rounding. A ratio of two decreases near zero says little: NaN without an update.
    A learning rate is that of the optimizer's first group.

    Args:
        every: Read at every so-many-th step; None takes the scope's schedule.
    """

    CODE = "descent"
    SHOWS = "step_to_safe"
    QUESTION = "smoothness"
    SOURCES = (
        "Nocedal and Wright 2006, Numerical Optimization, section 4.1 (ratio of actual to predicted reduction)",
        "Cohen et al. 2021, Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability "
        "(arXiv:2103.00065)",
    )
    REPLAYS = True

    def read(self, step: Step) -> Iterator[Record]:
        """Yield the values of this step."""
        replay, hessian = step.replay, Hessian.of(step.replay)
        curvature = hessian.gradient_curvature()
        replay.reset()
        replay.advance(replay.slots)
        update = difference(replay.trainable(replay.flat), replay.trainable(replay.start.flat))
        after = float(replay.evaluate(gradient=False).loss)
        replay.reset()
        length = norm(update)
        bend = dot(update, hessian.product(update)) if 0 < length < math.inf else length
        linear = -dot(hessian.gradient, update)
        predicted = linear - bend / 2
        # Both losses by the same kind of pass, so that an update of zero is a decrease of exactly zero.
        before = float(replay.evaluate(gradient=False).loss)
        values = {
            "safe_step": _safe(curvature),
            "step_to_safe": math.nan if step.lr is None else step.lr * curvature / 2,
            "loss": before,
            "loss_after": after,
            "actual_decrease": before - after,
            # A loss that has become NaN has not gone down; if it was NaN before the update, nothing is known.
            "raised": math.nan if math.isnan(before) else float(not after <= before),
            "linear_decrease": linear,
            "predicted_decrease": predicted,
            "decrease_ratio": (before - after) / predicted if predicted else math.nan,
            "linear_decrease_ratio": (before - after) / linear if linear else math.nan,
        }
        for name, value in values.items():
            yield self.record(step, "", name, value)

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of steps that are too long: beyond the safe step, and updates that raise the loss."""
        if (share := readings.share("raised", lambda value: value > 0.5)) > _RAISED:
            says = f"{percent(share)} of the updates raise the loss on their own batch."
            yield Remark(sentence(says), Urgency.COSTLY, share, ("",), "raised")
        late = readings.late("step_to_safe").get("", 0.0)
        if late > _TOO_LONG:
            says = f"The learning rate is {times(late)} the longest step along the gradient that is safe."
            yield Remark(says, Urgency.NOTABLE, decades(late, 1), ("",), "step_to_safe")

    @classmethod
    def theory(cls, readings: Readings) -> Theory:
        """Draw where a step is too long, and where the quadratic model is right."""
        return {
            "step_to_safe": ("too long above", 1.0),
            "decrease_ratio": ("the quadratic model is right", 1.0),
            "linear_decrease_ratio": ("the linear model is right", 1.0),
        }


def _safe(curvature: float) -> float:
    if math.isnan(curvature):
        return math.nan
    return 2 / curvature if curvature > 0 else math.inf
