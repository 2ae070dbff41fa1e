"""Internal covariate shift by its definition: what the update of earlier layers does to a layer's gradient."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from normscope._errors import UsageError
from normscope.modules.sites import chosen, weight_layers
from normscope.modules.tree import walk
from normscope.probes._prefix import NotRepeatable, WatchedPass
from normscope.probes._probe import AbstractProbe
from normscope.probes._replay import Replay
from normscope.probes._start_state import Slot, homes
from normscope.probes._step import Step
from normscope.probes._vectors import Vector, difference, dot, norm
from normscope.probes.remarks import Readings, Remark, Urgency, amount, beyond, percent
from normscope.records import Record

METHODS = ("auto", "prefix", "general")
_TURNED = 0.5  # cosine: 60 degrees between the gradient used and the gradient that the others' update leaves
_SHIFTED = 0.5  # of the gradient's length


class CovariateShift(AbstractProbe):
    r"""Shift of each layer's gradient by the update of the layers before it.

    ## Measures
    Definition 2.1 of Santurkar et al., for each layer i that bears weight:

    $$G_i = \nabla_{W_i} L(W_1^t, \dots, W_k^t; x), \qquad
    G'_i = \nabla_{W_i} L(W_1^{t+1}, \dots, W_{i-1}^{t+1}, W_i^t, \dots, W_k^t; x),$$

    on the step's own batch, with the update that the optimizer really made: ``l2`` $\lVert G'_i - G_i\rVert_2$,
    ``relative`` $\lVert G'_i - G_i\rVert / \lVert G_i\rVert$, ``cosine`` $\cos(G_i, G'_i)$, and
    ``gradient_norm`` $\lVert G_i\rVert$.

    Before layer i is everything whose first use in the forward pass comes before it: the parameters of a norm that
    stands between layers i-1 and i are updated in $G'_i$. Parameters of a container count from when the container
    begins; modules whose own call is never seen from when the container around them begins. A shared weight counts
    from its first use. The first layer's shift is 0 unless a norm comes before it.

    ## Cost
    With n layers, in plain steps: nothing for $G$ where the user's own pass is proven to be it, else 1 (shared
    with other probes); for the $G'$ about n/4 + 1/3 by ``prefix`` (the updated prefix is run once; each layer
    then needs only the old suffix, and the backward pass only down to its own weight), n/2 + 1/3 by ``general`` (each
    layer runs the whole forward pass). ``auto`` takes the first where the pass can be repeated from kept outputs, and
    checks it once against the second. Memory: the outputs of all childless modules, and four copies of the parameters.

    ## Reads wrongly when
    ``loss_fn`` is not the loss of the loop, reaches parameters other than through the model, or writes into the batch.
    The raw ``l2`` is confounded by the scale of the gradient: compare ``relative`` and ``cosine``. To first order the
    shift is curvature times learning rate: compare networks at a matched step, too.

    Args:
        sites: Qualified names of the layers; all that bear weight and are trained if None.
        parameters: ``"weight"`` for the layer's parameters of two axes or more, ``"all"`` with its bias.
        method: ``"auto"``, ``"prefix"`` or ``"general"``; both give the same numbers up to rounding.
        every: Read at every so-many-th step; None takes the scope's schedule.

    Raises:
        UsageError: An option has no such value.
    """

    CODE = "covariate_shift"
    SHOWS = "relative"
    QUESTION = "shift"
    NOTHING = "no layer that bears weight was changed by the step"
    SOURCES = ("Santurkar et al. 2018, definition 2.1 and figure 3 (arXiv:1805.11604)",)
    REPLAYS = True

    def __init__(
        self,
        sites: Sequence[str] | None = None,
        *,
        parameters: str = "weight",
        method: str = "auto",
        every: int | None = None,
    ) -> None:
        super().__init__(every=every)
        if parameters not in ("weight", "all"):
            raise UsageError(f"{self.CODE}: parameters={parameters!r} must be 'weight' or 'all'")
        if method not in METHODS:
            raise UsageError(f"{self.CODE}: method={method!r} must be one of {', '.join(METHODS)}")
        self.sites = None if sites is None else tuple(sites)
        self.parameters, self.method = parameters, method
        self._trusted: dict[tuple[int, ...], bool] = {}

    def read(self, step: Step) -> Iterator[Record]:
        """Yield four values a layer, in the order of first use."""
        replay = step.replay
        layers = weight_layers(step.model) if self.sites is None else chosen(step.model, self.sites)
        replay.advance(replay.slots)
        watched = WatchedPass(replay)
        order = _Order(step.model, watched.first)
        whole = _split(replay, replay.origin().gradient)
        measured = [
            _Layer(site, module, slots) for site, module in layers.items() if (slots := self._slots(replay, module))
        ]
        # A module that is never called may still be used by the container around it; with no gradient it is not.
        measured = [layer for layer in measured if layer.module in watched.first or norm(_pick(whole, layer.slots)) > 0]
        measured.sort(key=lambda layer: order.of(layer.module))
        shifted = self._shifted(replay, watched, order, measured, whole)
        for layer, after in zip(measured, shifted, strict=True):
            yield from self._compare(step, layer.site, _pick(whole, layer.slots), after)

    def _slots(self, replay: Replay, module: Module) -> list[Slot]:
        own = homes(module)
        return [
            slot
            for slot in replay.slots
            if slot.trainable
            and (slot.parameter.ndim >= 2 or self.parameters == "all")
            and any(home in own for home, _ in slot.places)
        ]

    def _shifted(
        self,
        replay: Replay,
        watched: WatchedPass,
        order: "_Order",
        layers: "Sequence[_Layer]",
        whole: Mapping[int, Tensor],
    ) -> list[Vector]:
        def general() -> list[Vector]:
            return [_general(replay, order, layer, whole) for layer in layers]

        if self.method == "general" or (self.method == "auto" and watched.repeatable):
            return general()
        if watched.repeatable:
            raise UsageError(f"method='prefix' does not fit this model: {watched.repeatable}")
        try:
            fast = _by_prefix(replay, watched, order, layers, whole)
        except NotRepeatable as reason:
            if self.method == "prefix":
                raise UsageError(f"method='prefix' does not fit this model: {reason}") from reason
            return general()
        key = (*watched.signature(), *(id(layer.module) for layer in layers))
        if self.method == "prefix" or self._trusted.get(key):
            return fast
        sure = general()
        if key not in self._trusted and all(math.isfinite(norm(vector)) for vector in sure):
            self._trusted[key] = all(map(_agree, fast, sure))
        return sure

    def _compare(self, step: Step, site: str, before: Vector, after: Vector) -> Iterator[Record]:
        length, shift = norm(before), norm(difference(after, before))
        product = length * norm(after)
        yield self.record(step, site, "l2", shift)
        yield self.record(step, site, "relative", shift / length if length else math.nan)
        yield self.record(step, site, "cosine", dot(before, after) / product if product else math.nan)
        yield self.record(step, site, "gradient_norm", length)

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of layers whose gradient is another after the layers before them were updated."""
        if turned := beyond(readings, "cosine", below=_TURNED):
            yield turned.remark(
                "the update of the layers before {site} turns its gradient: cosine {value}{since}",
                "the update of the layers before turns the gradient of {where}, most of {site}: cosine {value}{since}",
                amount,
                Urgency.COSTLY,
                "layer",
            )
        elif moved := beyond(readings, "relative", above=_SHIFTED):
            yield moved.remark(
                "the update of the layers before {site} shifts its gradient by {value} of its length{since}",
                "the update of the layers before shifts the gradient of {where}, most of {site}: by {value} of its "
                "length{since}",
                percent,
                Urgency.NOTABLE,
                "layer",
            )


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer to measure: its name, itself, and the parameters by which to differentiate."""

    site: str
    module: Module
    slots: list[Slot]


class _Order:
    """When each module is used first, in the forward pass."""

    def __init__(self, model: Module, first: Mapping[Module, tuple[int, int]]) -> None:
        self._first = first
        self._around: dict[Module, Module] = {}
        for _, parent in walk(model):
            for child in parent._modules.values():
                if child is not None:
                    self._around.setdefault(child, parent)

    def _called(self, module: Module) -> Module | None:
        at: Module | None = module
        while at is not None and at not in self._first:
            at = self._around.get(at)
        return at

    def of(self, module: Module) -> int:
        """Return the number of its first call; beyond all others if it was never called."""
        called = self._called(module)
        return len(self._first) if called is None else self._first[called][0]

    def calls_before(self, module: Module) -> int:
        """Return how many childless modules had been called before it began."""
        called = self._called(module)
        return 0 if called is None else self._first[called][1]

    def preceding(self, replay: Replay, layer: "_Layer") -> list[Slot]:
        """Return the parameters whose first use comes before the layer's, its own left out."""
        bound, own = self.of(layer.module), set(map(id, layer.slots))
        return [
            slot
            for slot in replay.slots
            if id(slot) not in own and min(self.of(place) for place, _ in slot.places) < bound
        ]

    def shares(self, layer: "_Layer") -> bool:
        """Whether a weight of the layer is used before the layer."""
        return any(self.of(place) < self.of(layer.module) for slot in layer.slots for place, _ in slot.places)


def _general(replay: Replay, order: _Order, layer: _Layer, whole: Mapping[int, Tensor]) -> Vector:
    """Run the whole network with everything before the layer updated, and differentiate by the layer's weight only."""
    before = order.preceding(replay, layer)
    if not before:
        return _pick(whole, layer.slots)
    replay.reset()
    replay.advance(before)
    return replay.evaluate(layer.slots).gradient


def _by_prefix(
    replay: Replay, watched: WatchedPass, order: _Order, layers: Sequence[_Layer], whole: Mapping[int, Tensor]
) -> list[Vector]:
    """Run only the part of the network behind each layer's input, on the outputs kept from the updated pass."""
    found = []
    for layer in layers:
        before = order.preceding(replay, layer)
        if not before or order.shares(layer):
            found.append(_general(replay, order, layer, whole))
            continue
        replay.reset()
        replay.advance(before)
        with watched.skipping(order.calls_before(layer.module)):
            found.append(replay.evaluate(layer.slots).gradient)
    return found


def _split(replay: Replay, gradient: Vector) -> dict[int, Tensor]:
    """Cut a gradient into flat parts by parameter."""
    flat = list(replay.flat)
    for kind, part in zip(replay.start.trainable_kinds, gradient, strict=True):
        flat[kind] = part
    return {id(slot): slot.of(flat).reshape(-1) for slot in replay.slots if slot.trainable}


def _pick(whole: Mapping[int, Tensor], slots: Sequence[Slot]) -> Vector:
    return [whole[id(slot)] for slot in slots]


def _agree(fast: Vector, sure: Vector) -> bool:
    tolerance = max(torch.finfo(part.dtype).eps for part in sure) ** 0.5
    return norm(difference(fast, sure)) <= tolerance * norm(sure)
