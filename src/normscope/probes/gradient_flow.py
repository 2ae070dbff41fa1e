"""How gradients fare on their way through the layers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter

from normscope._errors import UsageError
from normscope.modules.channels import to_floats
from normscope.modules.shards import any_distributed, is_distributed, local, summed_over_shards
from normscope.modules.sites import chosen, weight_layers
from normscope.modules.tree import own_parameters
from normscope.probes._backward_end import Gradients, UncountedChanges
from normscope.probes._norms import norm_of, norms_of
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes.output_sizes import Pass, comparable, sizes_of, width_of
from normscope.probes.remarks import Readings, Remark, Theory, Urgency, called, decades, listed, share_of, times
from normscope.records import Record

_GROWTH = math.pi / (math.pi - 1)  # of the squared gradient, by Yang et al.
_FEWEST = 3  # layers for a slope
_FAR = 100.0  # squared gradient of the first layer over that of the last: ten times the gradient
_SAME = 0.03  # relative distance within which a growth is as theory says: that of the width and the batch
_NEAR = 0.15  # relative distance within which a growth is that of theory


class GradientFlow(AbstractProbe):
    r"""Gradient norm by layer, and growth of the gradient per layer.

    ## Measures
    From the user's own pass, for each layer that bears weight (Linear, Conv, ...):

    - ``norm``: $\lVert \partial L / \partial W_l \rVert_2$ over the layer's own parameters, as the backward pass
      ends and before anything clips it: averaged over the processes that train together, without loss scale, and of the
      last backward pass before the parameters change, so that micro-batches add up. Where an optimizer evaluates a
      closure several times (LBFGS) it is the first evaluation's. Where no backward pass writes ``.grad``, it is read
      right before the update;
    - ``norm_at_update``: the same as the optimizer was handed it, only where that differs: after clipping;
    - ``output_norm``: root mean square of $\partial L / \partial h_l$ over all elements of the layer's output
      $h_l$, its pre-activation; over all of its calls if it is called several times.

    For the whole model, ``growth``: $\lambda = \exp(-b)$, with $b$ the least-squares slope of the log mean
    square of $\partial L / \partial h_l$ on the layer index $l$: the factor by which the squared gradient
    grows per layer on its way to the input. Layers are counted in the order of their first use. For batch norm and
    ReLU, Gaussian weights and a large batch it is $\pi/(\pi-1) = 1.467$ at initialization.

    Only where layers differ in them, for each layer: ``output_width``, the elements of its output at a position
    (features of a linear layer, channels of a convolution), and ``output_positions``, the number of positions as a
    multiple of the fewest that a layer has. What is said of a model compares layers of equal ``output_positions`` by
    the square summed over the width: weights scaled to their fan-in keep this sum whatever the widths, whereas an
    average over N positions divides it by N although the gradients of weights stay what they were.

    ## Cost
    One reduction for each layer's output gradient, one of all parameter gradients a backward pass and another only if
    they were changed before the update, one transfer to the host a step. With sharded parameters one exchange.

    ## Reads wrongly when
    Gradients carry a loss scale of which the scope does not know (give it ``scaler``): then the norms have it too.
    ``norm_at_update`` is left out where a loop begins after the first reading to change gradients through
    ``.grad.data``, of which torch keeps no count; under a loss scale where they change by less than 1e-4; and without
    optimizer. With several backward passes through
    one forward pass, squares are pooled over the passes; over micro-batches ``output_norm`` is that of all their
    outputs. ``growth`` assumes that layers follow one another: with branches or skips the order of first use is not a
    depth. And it assumes outputs of one size: a global average over N positions makes the mean square $N^2$ times
    smaller on the way to the input, without any gradient having vanished. With layers that are alone in their number of
    positions nothing is said of them.

    Args:
        sites: Qualified names of the layers; all that bear weight if None.
        trim: How many layers to leave out of ``growth`` at each end, or at the (input, output) end. The first
            layers see the input's and the last the loss's own distribution.
        every: Read at every so-many-th step; None takes the scope's schedule.
    """

    CODE = "gradient_flow"
    SHOWS = "output_norm"
    QUESTION = "gradient"
    BY_DEFAULT = True
    NOTHING = "no layer that bears weight received a gradient"
    STREAMING = True
    SOURCES = (
        "Yang et al. 2019, A Mean Field Theory of Batch Normalization, theorems 7-9 (arXiv:1902.08129)",
        "Luther 2020, Why Batch Norm Causes Exploding Gradients",
    )

    def __init__(
        self,
        sites: Sequence[str] | None = None,
        *,
        trim: int | tuple[int, int] = 0,
        every: int | None = None,
    ) -> None:
        super().__init__(every=every)
        self.sites = None if sites is None else tuple(sites)
        self.trim = (trim, trim) if isinstance(trim, int) else tuple(trim)
        if min(self.trim) < 0:
            raise UsageError(f"{self.CODE}: trim={trim} must not be negative")
        self._uncounted = UncountedChanges()

    def watch(self, step: Step) -> None:
        """Count calls of the layers, and reduce each output gradient as it passes."""
        layers = step.modules(weight_layers) if self.sites is None else chosen(step.model, self.sites)
        notes = step.notes(self)
        notes["own"] = {site: [p for _, p in own_parameters(module)] for site, module in layers.items()}
        held = {id(p): p for own in notes["own"].values() for p in own}
        notes["norms"], notes["at_update"] = {}, {}
        notes["gradients"] = Gradients(held.values(), lambda: step.updating, self._uncounted.possible(step.model))
        step.on_backward_end(self, held.values(), partial(self._ended, step, notes))
        squares: dict[str, list[Pass]] = notes.setdefault("squares", {})
        for site, module in layers.items():
            self._watch_site(step, site, module, squares)

    def _ended(self, step: Step, notes: dict[str, Any]) -> None:
        found = notes["gradients"].after_backward()
        self._take_norms(step, found, notes["norms"])
        for parameter in found:
            notes["at_update"].pop(id(parameter), None)  # that of an update whose closure has run this pass

    def _watch_site(self, step: Step, site: str, module: Module, squares: dict[str, list[Pass]]) -> None:
        # The key is made at the first forward call: the dict's order is the order of first use.
        def called(_: Tensor) -> None:
            squares.setdefault(site, [])

        step.on_output(self, module, called)
        step.on_output_gradient(
            self,
            module,
            lambda gradient: squares.setdefault(site, []).append(
                (norm_of(gradient), gradient.numel(), width_of(module, gradient))
            ),
        )

    def before_update(self, step: Step, parameters: Mapping[int, Parameter]) -> None:
        """Take the norms of the gradients that no backward pass has shown, and of those that were changed since."""
        notes = step.notes(self)
        unread, changed = notes["gradients"].before_update(parameters)
        self._take_norms(step, unread, notes["norms"])
        self._take_norms(step, changed, notes["at_update"])

    @staticmethod
    def _take_norms(step: Step, parameters: Sequence[Parameter], norms: dict[int, Tensor]) -> None:
        held = {id(p): local(gradient) for p in parameters if (gradient := step.gradient(p)) is not None}
        norms.update(zip(held, norms_of(list(held.values())), strict=True))

    def read(self, step: Step) -> Iterator[Record]:
        """Yield the norms by layer, in the order of first use, and ``growth``."""
        return self.records(step, self._values(step))

    def _values(self, step: Step) -> Iterator[tuple[str, str, float]]:
        notes = step.notes(self)
        own: dict[str, list[Parameter]] = notes["own"]
        squares: dict[str, list[Pass]] = {
            site: [each for each in passes if each[1]] for site, passes in notes["squares"].items()
        }  # an empty batch has no mean
        self._take_what_is_left(step, notes)
        norms: dict[int, Tensor] = notes["norms"]
        at_update: dict[int, Tensor] = notes["at_update"]
        roots = [root for passes in squares.values() for root, *_ in passes]
        values = iter(to_floats([*norms.values(), *at_update.values(), *roots]))
        lengths = {key: next(values) for key in norms}
        handed_over = {key: next(values) for key in at_update}
        uncounted = notes["gradients"].uncounted & lengths.keys()
        self._uncounted.note(step.model, (lengths[key] != handed_over[key] for key in uncounted))
        _add_shards([p for held in own.values() for p in held], lengths, handed_over)
        means: list[float] = []
        by_site = {site: [(next(values) ** 2, count) for _, count, _ in passes] for site, passes in squares.items()}
        for site in [*squares, *(site for site in own if site not in squares)]:
            held = [lengths[id(p)] for p in own[site] if id(p) in lengths]
            if held:
                yield site, "norm", math.hypot(*held)
                used = [handed_over.get(id(p), lengths[id(p)]) for p in own[site] if id(p) in lengths]
                if _differ(held, used, 1e-4 if step.scale != 1 else 0.0):
                    yield site, "norm_at_update", math.hypot(*used)
            passes = by_site.get(site)
            if passes:
                means.append(math.fsum(square for square, _ in passes) / sum(count for _, count in passes))
                yield site, "output_norm", math.sqrt(means[-1])
        for name, sizes in sizes_of(squares).items():
            for site, size in sizes.items():
                yield site, name, size
        yield "", "growth", self._growth(means)

    def _take_what_is_left(self, step: Step, notes: dict[str, Any]) -> None:
        """Read what the optimizers' hooks have not shown: those of a loop without, or whose closure runs the pass."""
        norms: dict[int, Tensor] = notes["norms"]
        unread, changed = notes["gradients"].at_end()
        self._take_norms(step, [p for p in unread if id(p) not in norms], norms)
        if step.optimizers:
            late: dict[int, Tensor] = {}
            self._take_norms(step, changed, late)
            notes["at_update"].update({key: root for key, root in late.items() if float(root)})  # 0: set to zero since

    def _growth(self, means: Sequence[float]) -> float:
        first, last = self.trim
        logs = [math.log(mean) if mean > 0 else -math.inf for mean in means[first : len(means) - last]]
        if len(logs) < 2 or not all(map(math.isfinite, logs)):
            return math.nan
        centre = (len(logs) - 1) / 2
        slope = sum((index - centre) * log for index, log in enumerate(logs))
        return math.exp(-slope / sum((index - centre) ** 2 for index in range(len(logs))))

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of gradients that are not finite, that are missing, and that grow or vanish toward the input."""
        broken = readings.not_finite("norm") or readings.not_finite("output_norm")
        if broken:
            site = min(broken, key=broken.__getitem__)
            says = f"The gradient of {called(site)} is not finite, first at step {broken[site]:,}"
            more = f"; {share_of(len(broken), len(readings.values['norm']), 'layer')} in all" if len(broken) > 1 else ""
            yield Remark(f"{says}{more}.", Urgency.BROKEN, 0.9, tuple(broken), "norm")
        norms = readings.late("norm")
        none = [site for site, value in norms.items() if value == 0]
        if none:
            few = listed([called(site) for site in none[:3]])
            which = few if len(none) <= 3 else f"{few} and {len(none) - 3} more"
            says = f"No gradient reaches {which} ({share_of(len(none), len(norms), 'layer')})."
            yield Remark(says, Urgency.BROKEN, len(none) / len(norms), tuple(none), "norm")
        yield from cls._growth_remarks(readings)

    @classmethod
    def _growth_remarks(cls, readings: Readings) -> Iterator[Remark]:
        judged = comparable(readings)
        if judged is None:
            growth, first = readings.late("growth").get("", math.nan), readings.first("growth").get("", math.nan)
            sites = [*readings.values.get("output_norm", {})]
            reach = len(sites) - 1
        else:
            sites, reach = judged.sites, judged.reach
            growth = judged.growth(readings.late("output_norm"))
            first = judged.growth(readings.first("output_norm"))
        if len(sites) < _FEWEST or not growth > 0:
            return
        whole = decades(growth, 1) * reach
        far = abs(whole) > decades(_FAR, 1)
        recorded = readings.first("growth").get("", math.nan)  # with skips it is another than between equal layers
        near = "growth" in cls.theory(readings) and _is_near(first, _GROWTH) and _is_near(recorded, _GROWTH)
        if not far and not (near and growth > 1 + _NEAR):
            return
        verb = f"grow {times(growth)}" if growth > 1 else f"shrink {times(1 / growth)}"
        says = f"Gradients {verb} a layer toward the input (squared, from {called(sites[-1])} to {called(sites[0])})"
        earlier = f"grew {times(first)}" if first > 1 else f"shrank {times(1 / first) if first > 0 else 'to nothing'}"
        before = "" if _is_near(growth, first) else f"at step {readings.first_step:,} they {earlier}"
        over = f": {times(10 ** min(abs(whole), 300.0))} over {len(sites)} layers" if far else ""
        if near:
            how = "as theory says" if abs(decades(first, _GROWTH)) < decades(1 + _SAME, 1) else "near what theory says"
            words = f"{how} for a network with batch norm and ReLU at initialization ({_GROWTH:.4g})"
            says += f"; {before}, {words}{over}" if before else f", {words}{over}"
        else:
            says += f"{over}; {before}" if before else over
        urgency = Urgency.COSTLY if far else Urgency.NOTABLE
        yield Remark(f"{says}.", urgency, abs(whole) / 10, (sites[0], sites[-1]), "output_norm")

    @classmethod
    def theory(cls, readings: Readings) -> Theory:
        """Draw the growth of a network with batch norm and ReLU, if the model has both."""
        if not (readings.has("BatchNorm") and readings.has("ReLU")):
            return {}
        found: Theory = {"growth": ("batch norm and ReLU: π/(π − 1)", _GROWTH)}
        first = {site: value for site, value in readings.first("output_norm").items() if value > 0}
        growth = readings.first("growth").get("", math.nan)  # far from it: skips and branches, or another fault
        if len(first) >= _FEWEST and _is_near(growth, _GROWTH):
            middle = sum(map(math.log, first.values())) / len(first)
            half, root = (len(first) - 1) / 2, math.log(_GROWTH) / 2
            line = {site: math.exp(middle + root * (half - index)) for index, site in enumerate(first)}
            found["output_norm"] = (f"growth of batch norm and ReLU, {_GROWTH:.4g} a layer (squared)", line)
        return found


def _add_shards(parameters: Sequence[Parameter], *lengths: dict[int, float]) -> None:
    """Make norms of this process's parts of sharded gradients the norms of the whole ones."""
    if not any_distributed(parameters):
        return
    every = [p for p in parameters if is_distributed(p)]
    # In the same order in every process, whichever of the gradients it has.
    squares = [known.get(id(p), 0.0) ** 2 for known in lengths for p in every]
    whole = iter(summed_over_shards(squares, every * len(lengths)))
    for known in lengths:
        known.update({id(p): math.sqrt(total) for p in every if (total := next(whole)) or id(p) in known})


def _differ(a: Sequence[float], b: Sequence[float], tolerance: float) -> bool:
    if a == b:
        return False
    return any(not math.isclose(p, q, rel_tol=tolerance) and p == p for p, q in zip(a, b, strict=True))  # NaN is NaN


def _is_near(growth: float, other: float) -> bool:
    return growth > 0 and other > 0 and abs(decades(growth, other)) < decades(1 + _NEAR, 1)
