"""What the updates of different layers do to each other."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from normscope._errors import UsageError
from normscope.modules.sites import weight_layers
from normscope.probes._hessian import Hessian, restricted
from normscope.probes._probe import AbstractProbe
from normscope.probes._replay import Replay
from normscope.probes._start_state import Slot, homes
from normscope.probes._step import Step
from normscope.probes._vectors import dot, norm
from normscope.probes.remarks import Readings, Remark, Urgency, decades, percent
from normscope.records import Record

_VALUES = ("remainder", "second_order", "third_order", "interaction", "interaction_size")
_TOGETHER = 0.5  # share of the second order
_HIGH = 0.5  # of the predicted decrease


class Interaction(AbstractProbe):
    r"""Cross-layer interaction and high-order remainder of a gradient step.

    ## Measures
    On the step's own batch at the parameters with which the step began, for the whole model. All trainable parameters
    fall into groups: each layer that bears weight, with what follows it up to the next one (its norm's parameters). g_i
    is the gradient of group i, $H_{ij}$ the Hessian's block:

    - ``cross_share`` $X = \sum_{i\ne j} g_i^T H_{ij} g_j \big/ \sum_{ij} |g_i^T H_{ij} g_j|$: 0 where each layer
      bends the loss alone, between -1 and 1.

    For a step $-\alpha g$ whose predicted decrease is a given share of the loss,
    $\alpha\lVert g\rVert^2 = c L$, named behind ``@c=``, everything over $\alpha\lVert g\rVert^2$:

    - ``remainder`` $|L(\theta-\alpha g) - L + \alpha\lVert g\rVert^2|$, all that the first order leaves out;
    - ``second_order`` $\alpha^2 g^T H g / 2$, signed;
    - ``third_order`` $|L(\theta-\alpha g) - L + \alpha\lVert g\rVert^2 - \alpha^2 g^T H g / 2|$, the part that
      the second order leaves out;
    - ``interaction``, the jackknife: the change of the loss by the whole step less the sum of its changes by the steps
      of each group alone, signed; ``interaction_size``, its absolute value.

    The same for steps of a given learning rate $\alpha$, named behind ``@lr=``.

    ## Cost
    In plain steps, with n groups: 1 for the graph of the gradient (shared with other probes), about n/2 Hessian-vector
    products of 1.4 (linear layers) to 3.2 (convolutions), each over later layers only, as the blocks are symmetric, and
    (n + 1)/3 for each c and each learning rate. ``cross_share`` alone can be had by ``decreases=()``.

    ## Reads wrongly when
    Modules are not registered in the order of use: then a norm may be counted with another layer. With a gradient of
    zero, a loss that is not positive, or anything not finite, values are NaN. In float32 a remainder below 1e-7/c is
    rounding. It is the plain gradient's step, whatever the optimizer does.

    Args:
        decreases: Predicted decreases c as shares of the loss.
        rates: Learning rates of further steps.
        every: Read at every so-many-th step; None takes the scope's schedule.

    Raises:
        UsageError: A decrease or a rate is not positive.
    """

    CODE = "interaction"
    SHOWS = "cross_share"
    QUESTION = "smoothness"
    SOURCES = (
        "Goodfellow, Bengio and Courville 2016, Deep Learning, section 8.7.1",
        "Efron 1982, The Jackknife",
    )
    REPLAYS = True
    COST = (15.0, 23.0)  # with its defaults, on the models of `normscope bench probes`

    def __init__(
        self,
        decreases: Sequence[float] = (0.01, 0.1, 0.5),
        *,
        rates: Sequence[float] = (),
        every: int | None = None,
    ) -> None:
        super().__init__(every=every)
        for name, given in (("decreases", decreases), ("rates", rates)):
            if any(not 0 < value < math.inf for value in given):
                raise UsageError(f"{self.CODE}: {name}={tuple(given)} must be positive")
        self.decreases, self.rates = tuple(decreases), tuple(rates)

    def read(self, step: Step) -> Iterator[Record]:
        """Yield the cross-layer share, and five values for each predicted decrease and each learning rate."""
        replay, hessian = step.replay, Hessian.of(step.replay)
        groups = parameter_groups(step)
        blocks = self._blocks(replay, hessian, groups)
        size = np.abs(blocks).sum()
        cross = blocks.sum() - np.trace(blocks)
        yield self.record(step, "", "cross_share", float(cross / size) if size else math.nan)
        square = norm(hessian.gradient) ** 2
        directions = [hessian.gradient, *(restricted(replay, hessian.gradient, group) for group in groups)]
        replay.reset()
        loss = float(replay.evaluate(gradient=False).loss)
        steps = {f"c={c:g}": c * loss / square if square else math.nan for c in self.decreases}
        steps |= {f"lr={rate:g}": rate if square else math.nan for rate in self.rates}
        for label, alpha in steps.items():
            values = dict.fromkeys(_VALUES, math.nan)
            if 0 < alpha < math.inf:
                changes = []
                for direction in directions:
                    replay.move(direction, alpha)
                    changes.append(float(replay.evaluate(gradient=False).loss) - loss)
                values = _beyond_first_order(changes, alpha * square, alpha**2 * float(blocks.sum()) / 2)
            for name, value in values.items():
                yield self.record(step, "", f"{name}@{label}", value)
        replay.reset()

    def _blocks(self, replay: Replay, hessian: Hessian, groups: Sequence[Sequence[Slot]]) -> np.ndarray:
        blocks = np.zeros((len(groups), len(groups)))
        for i, group in enumerate(groups):
            # A product of a layer's gradient is needed only for the layers from it on: the pass is shorter.
            later = [slot for member in groups[i:] for slot in member]
            product = hessian.product(restricted(replay, hessian.gradient, group), along=group, wanted=later)
            for j in range(i, len(groups)):
                blocks[i, j] = blocks[j, i] = dot(restricted(replay, hessian.gradient, groups[j]), product)
        return blocks

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of layers that bend the loss together, and of steps beyond the second order."""
        share = readings.late("cross_share").get("", 0.0)
        if abs(share) > _TOGETHER:
            says = f"The layers bend the loss together: {percent(abs(share))} of the second order is between layers."
            yield Remark(says, Urgency.NOTABLE, abs(share), ("",), "cross_share")
        for name in readings.named("third_order"):
            beyond_second = readings.late(name).get("", 0.0)
            if beyond_second > _HIGH:
                says = (
                    f"A step that should lower the loss by {name.partition('=')[2]} of itself misses by "
                    f"{percent(beyond_second)} of that, beyond the second order."
                )
                yield Remark(says, Urgency.NOTABLE, decades(beyond_second, _HIGH), ("",), name)
                break


def _beyond_first_order(changes: Sequence[float], decrease: float, second: float) -> dict[str, float]:
    """Return what the first order leaves out of a step, over the predicted decrease.

    Args:
        changes: Of the loss, by the whole step and by the steps of each group alone.
        decrease: What the first order predicts.
        second: What the second order adds.
    """
    beyond = changes[0] + decrease
    together = changes[0] - math.fsum(changes[1:]) if all(map(math.isfinite, changes)) else math.nan
    found = (abs(beyond), second, abs(beyond - second), together, abs(together))
    return {name: value / decrease for name, value in zip(_VALUES, found, strict=True)}


def parameter_groups(step: Step) -> list[list[Slot]]:
    """Cut the trainable parameters at each weight-bearing layer; those before the first layer go with it."""
    owner = {home: site for site, layer in weight_layers(step.model).items() for home in homes(layer)}
    groups: list[list[Slot]] = []
    current = None
    for slot in step.replay.slots:
        if not slot.trainable:
            continue
        site = owner.get(slot.places[0][0])
        if not groups or (site is not None and current is not None and site != current):
            groups.append([])
        current = current if site is None else site
        groups[-1].append(slot)
    return groups
