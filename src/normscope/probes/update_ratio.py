"""How large updates are relative to the parameters that they change."""

from collections.abc import Iterator, Mapping, Sequence

from torch.nn import Parameter

from normscope.modules.sites import chosen, weight_layers, weights
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes.remarks import Readings, Remark, Theory, Urgency, beyond, percent
from normscope.records import Record

_FAST = 0.03  # thirty times the rule of thumb
_FEWEST = 2  # readings
_SLOW = 1e-5  # a hundredth of the rule of thumb


class UpdateRatio(AbstractProbe):
    r"""Size of the update beside the size of the weights.

    ## Measures
    For each layer, over its own parameters $W$ of two axes or more that require a gradient: ``update_norm``,
    $\lVert \Delta W\rVert_2$, and ``update_ratio``, $\lVert \Delta W\rVert_2 / \lVert W\rVert_2$, with
    $W$ as the step began and $\Delta W$ its change until the step ended, whatever made it: learning rate,
    momentum, weight decay, clipping. A common rule of thumb wants about 1e-3.

    ## Cost
    A copy of the weights, shared with other probes, and two norms and a difference of the same size. With sharded
    parameters one exchange.

    ## Reads wrongly when
    The step ends before the update: then there is no change and nothing is recorded, unless gradients are there: then
    0. Weights of zero give NaN or infinity.

    Args:
        sites: Qualified names of layers; all that bear weight if None.
        every: Read at every so-many-th step; None takes the scope's schedule.
    """

    CODE = "update_ratio"
    SHOWS = "update_ratio"
    QUESTION = "gradient"
    BY_DEFAULT = True
    NOTHING = "no layer that bears weight was changed by the step"
    STREAMING = True
    SOURCES = ("Karpathy, CS231n notes, Neural Networks part 3: ratio of weights to updates",)

    def __init__(self, sites: Sequence[str] | None = None, *, every: int | None = None) -> None:
        super().__init__(every=every)
        self.sites = None if sites is None else tuple(sites)

    def watch(self, step: Step) -> None:
        """Keep the weights as they are before the update."""
        layers = step.modules(weight_layers) if self.sites is None else chosen(step.model, self.sites)
        notes = step.notes(self)
        notes["layers"] = {site: [p for p in weights(module) if p.requires_grad] for site, module in layers.items()}
        notes["used"] = set()
        step.keep_values((parameter for own in notes["layers"].values() for parameter in own), parts=True)

    def before_update(self, step: Step, parameters: Mapping[int, Parameter]) -> None:
        """Note which weights have a gradient: the others were not used."""
        used: set[int] = step.notes(self)["used"]
        used |= {key for key, parameter in parameters.items() if parameter.grad is not None}

    def read(self, step: Step) -> Iterator[Record]:
        """Yield norm and ratio of each layer's update."""
        return self.records(step, self._values(step))

    def _values(self, step: Step) -> Iterator[tuple[str, str, float]]:
        notes = step.notes(self)
        layers: dict[str, list[Parameter]] = notes["layers"]
        every = [parameter for own in layers.values() for parameter in own]
        if not every:
            return
        changes = iter(step.changes(every))
        for site, own in layers.items():
            squares = [next(changes) for _ in own]
            update, size = (sum(square[index] for square in squares) ** 0.5 for index in (0, 2))
            if update == 0 and not any(p.grad is not None or id(p) in notes["used"] for p in own):
                continue
            yield site, "update_norm", update
            yield site, "update_ratio", update / size if size else float("nan")

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of weights that change too fast, or hardly at all at every reading: schedules begin and end at zero."""
        if fast := beyond(readings, "update_ratio", above=_FAST):
            yield fast.remark(
                "updates change the weights of {site} by {value} a step{since}; the rule of thumb is 0.1 %",
                "updates change the weights fast in {where}, most in {site}: by {value} a step{since}; the rule of "
                "thumb is 0.1 %",
                percent,
                Urgency.COSTLY,
                "layer",
            )
        if slow := beyond(cls._while_moving(readings), "update_ratio", below=_SLOW, largest=True):
            yield slow.remark(
                "updates hardly change the weights of {site}: by {value} a step{since}",
                "updates hardly change the weights in {where}, least in {site}: by {value} a step{since}",
                percent,
                Urgency.COSTLY,
                "layer",
            )

    @classmethod
    def theory(cls, readings: Readings) -> Theory:
        """Draw the rule of thumb."""
        return {"update_ratio": ("rule of thumb", 1e-3)}

    @staticmethod
    def _while_moving(readings: Readings) -> Readings:
        """Return what several readings say of the ratio; those at which nothing moved only where nothing ever did."""
        series = readings.values.get("update_ratio", {})
        moving = {step for values in series.values() for step, value in values if value > 0}
        steps = {step for values in series.values() for step, _ in values}
        if len(steps) < _FEWEST:  # a learning rate that is warmed up is near zero at the first
            return Readings({}, readings.kinds)
        kept = moving or steps
        return Readings(
            {"update_ratio": {site: [each for each in values if each[0] in kept] for site, values in series.items()}},
            readings.kinds,
        )
