"""The Hessian of a step's loss as an operator, and the vectors it acts on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import Module

from normscope._errors import UsageError
from normscope.modules.sites import weight_layers
from normscope.probes._replay import Replay
from normscope.probes._start_state import Slot, homes
from normscope.probes._vectors import Vector, difference, dot, norm

MODES = ("train", "frozen")
Value = tuple[str, str, float]
"""Site, name, value."""


class Hessian:
    """Exact Hessian-vector products at the parameters with which the step began.

    The first backward pass is recorded once and kept, so that each product costs only the second one. Where an
    operation has no second derivative (some fused attention and recurrent kernels), the central difference of gradients
    at ``theta +- h v`` is taken, ``h = eps^(1/3) |theta| / |v|``: it counts the kinks of ReLU and max-pooling that it
    crosses as curvature, which the exact product does not.

    Attributes:
        loss: Loss there.
        gradient: Gradient there.
        exact: Whether products are exact.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay, self.mode = replay, replay.mode
        self._slots = [slot for slot in replay.slots if slot.trainable]
        # Leaves of its own: walks of other probes overwrite the replay's, which would invalidate the kept graph.
        every = replay.leaves()
        self._leaves = {id(slot): leaf for slot, leaf in zip(replay.slots, every, strict=True) if slot.trainable}
        with replay.substituted(every):
            loss = replay.loss()
        if not loss.requires_grad:
            raise UsageError("loss_fn returned a loss that depends on no trainable parameter of the model")
        leaves = [self._leaves[id(slot)] for slot in self._slots]
        self.exact, parts = True, None
        self._along: Vector | None = None
        try:
            # Under the loss scale, without which half-precision gradients vanish; results are returned without it.
            parts = torch.autograd.grad(self._scaled(loss), leaves, create_graph=True, allow_unused=True)
        except RuntimeError:
            self.exact = False
        self.loss = self._shared([loss.detach()])[0].item()
        if self._failed(parts is None or _refuses(parts)) or parts is None:
            self.exact = False
            self.gradient = replay.origin().gradient
            self._parts: list[tuple[Slot, Tensor]] = []
            flat = whole(replay, self.gradient)
            self._used = {id(slot) for slot in self._slots if bool(slot.of(flat).any())}
            return
        self._used = {id(slot) for slot, part in zip(self._slots, parts, strict=True) if part is not None}
        self.gradient = self._shared(self._unscaled(replay.start.gather(self._slots, parts)))
        self._parts = [
            (slot, part)
            for slot, part in zip(self._slots, parts, strict=True)
            if part is not None and part.requires_grad
        ]

    def _shared(self, own: Vector) -> Vector:
        """Return the mean over the processes between which the model exchanges values."""
        return own if self._replay.processes is None else self._replay.processes.mean(own)

    def _failed(self, here: bool) -> bool:
        """Whether a second derivative has failed, here or in another of the processes that take the same passes."""
        return here if self._replay.processes is None else self._replay.processes.decide(here)

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self._replay.scale == 1 else loss * self._replay.scale

    def _unscaled(self, vector: Vector) -> Vector:
        return vector if self._replay.scale == 1 else [part / self._replay.scale for part in vector]

    @property
    def rounding(self) -> float:
        r"""Relative rounding of a product: that of the coarsest type in it; its power 2/3 for differences of gradients.

        Those lose $\epsilon |g| / h$ and $h^2$, which the step h above makes alike.
        """
        eps = max(self._replay.start.conditions.epsilon, *(torch.finfo(part.dtype).eps for part in self.gradient))
        return eps if self.exact else eps ** (2 / 3)

    @staticmethod
    def of(replay: Replay) -> "Hessian":
        """Return the Hessian in the replay's present mode; the next probes that ask get the same object."""
        kept = replay.cache.get("hessian")
        if kept is None or kept.mode != replay.mode:
            replay.cache.pop("hessian", None)  # frees the old graph before a new one is recorded
            kept = replay.cache["hessian"] = Hessian(replay)
        return kept

    def reaches(self, slots: Iterable[Slot]) -> bool:
        """Whether the loss depends on any of these parameters."""
        return any(id(slot) in self._used for slot in slots)

    def product(
        self, direction: Vector, *, along: Sequence[Slot] | None = None, wanted: Sequence[Slot] | None = None
    ) -> Vector:
        """Return the product of the Hessian and ``direction``.

        Args:
            direction: A vector over all trainable parameters.
            along: Parameters outside of which ``direction`` is zero; their part of the pass is not computed.
            wanted: Parameters whose part of the product is computed; the rest of the result is zero.
        """
        if self.exact:
            if self._replay.processes is not None:
                self._replay.processes.begin_pass()
            found = None
            with suppress(RuntimeError):
                found = self._double_backward(direction, along, wanted)
            self.exact = not self._failed(found is None)
            if self.exact and found is not None:
                return self._shared(found)
        product = self._central(direction)
        return product if wanted is None else restricted(self._replay, product, wanted)

    def _double_backward(
        self, direction: Vector, along: Sequence[Slot] | None, wanted: Sequence[Slot] | None
    ) -> Vector:
        flat = whole(self._replay, direction)
        chosen = None if along is None else set(map(id, along))
        used = [(slot, part) for slot, part in self._parts if chosen is None or id(slot) in chosen]
        slots = self._slots if wanted is None else [slot for slot in self._slots if id(slot) in set(map(id, wanted))]
        parts: Sequence[Tensor | None] = [None] * len(slots)
        if used and slots:  # else the loss is linear in the parameters
            parts = torch.autograd.grad(
                [part for _, part in used],
                [self._leaves[id(slot)] for slot in slots],
                [slot.of(flat).to(part) for slot, part in used],
                retain_graph=True,
                allow_unused=True,
            )
        if wanted is None:
            return self._unscaled(self._replay.start.gather(slots, parts))
        found = zeros(self._replay)
        view = whole(self._replay, found)
        for slot, part in zip(slots, parts, strict=True):
            if part is not None:
                slot.of(view).copy_(part if part.layout == torch.strided else part.to_dense())
        return self._unscaled(found)

    def _central(self, direction: Vector) -> Vector:
        replay = self._replay
        eps = max(torch.finfo(part.dtype).eps for part in direction)
        length = norm(direction)
        if length == 0:
            return zeros(replay)
        h = eps ** (1 / 3) * max(norm(replay.trainable(replay.start.flat)), 1e-8) / length
        replay.move(direction, -h)
        ahead = replay.evaluate().gradient
        replay.move(direction, h)
        behind = replay.evaluate().gradient
        replay.reset()
        return [part / (2 * h) for part in difference(ahead, behind)]

    def along_gradient(self) -> Vector:
        """Return the product with the unit gradient; taken once. NaN where there is no direction."""
        if self._along is None:
            length = norm(self.gradient)
            usable = np.isfinite(length) and length > 0
            self._along = (
                self.product([part / length for part in self.gradient])
                if usable
                else [torch.full_like(part, torch.nan) for part in self.gradient]
            )
        return self._along

    def gradient_curvature(self) -> float:
        """Return $g^T H g / g^T g$; NaN for a gradient that is zero or not finite."""
        length = norm(self.gradient)
        return dot(self.gradient, self.along_gradient()) / length if length else float("nan")


def _refuses(parts: Iterable[Tensor | None]) -> bool:
    """Whether a function that is differentiable only once took part: torch would count its part as zero, silently."""
    seen, waiting = set(), [part.grad_fn for part in parts if part is not None]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ in ("Error", "NotImplemented"):
            return True
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    return False


def in_modes(replay: Replay, modes: Sequence[str], read: Callable[[], Iterable[Value]]) -> Iterator[Value]:
    """Yield the values of ``read`` in each mode, with ``@`` and the mode behind their names.

    If freezing the norms changes nothing, because there are none or all are in eval mode, ``read`` runs only once.
    """
    plain: list[Value] | None = None
    for mode in modes:
        with replay.frozen(mode == "frozen") as changed:
            found = list(read()) if plain is None or changed else plain
            plain = plain if changed else found
        yield from ((site, f"{name}@{mode}", value) for site, name, value in found)


def check_modes(code: str, modes: Sequence[str]) -> tuple[str, ...]:
    """Return the modes.

    Raises:
        UsageError: One is unknown.
    """
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise UsageError(f"{code}: modes={tuple(modes)} must be some of {', '.join(MODES)}")
    return tuple(modes)


def generator(seed: int, step: int) -> Generator:
    """Return a random stream of the probe's own, fixed by the seed and the step; on the CPU, so alike on any device."""
    return Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1))


def whole(replay: Replay, vector: Vector) -> list[Tensor]:
    """Lay a vector over the trainable parameters out by kind, so that ``slot.of`` finds its parts."""
    flat = [torch.empty(0)] * len(replay.flat)
    for kind, part in zip(replay.start.trainable_kinds, vector, strict=True):
        flat[kind] = part
    return flat


def zeros(replay: Replay) -> Vector:
    """Return the zero vector over the trainable parameters."""
    return [torch.zeros_like(part) for part in replay.trainable(replay.start.flat)]


def count(replay: Replay) -> int:
    """Return the number of trainable parameters."""
    return sum(slot.parameter.numel() for slot in replay.slots if slot.trainable)


def restricted(replay: Replay, vector: Vector, slots: Iterable[Slot]) -> Vector:
    """Return ``vector`` with zeros outside of the given parameters."""
    found = zeros(replay)
    source, target = whole(replay, vector), whole(replay, found)
    for slot in slots:
        slot.of(target).copy_(slot.of(source))
    return found


def drawn(replay: Replay, stream: Generator, kind: str = "normal", slots: Sequence[Slot] | None = None) -> Vector:
    """Return a random vector over the trainable parameters, or those given: ``"normal"``, or ``"signs"`` of +-1."""
    found = zeros(replay)
    flat = whole(replay, found)
    for slot in replay.slots if slots is None else slots:
        if not slot.trainable:
            continue
        # Drawn one parameter at a time: the padding between them stays zero.
        shape = slot.parameter.shape
        if kind == "normal":
            slot.of(flat).copy_(torch.randn(shape, generator=stream, dtype=torch.float32))
        else:
            slot.of(flat).copy_(torch.randint(2, shape, generator=stream, dtype=torch.int8)).mul_(2).sub_(1)
    return found


def weight_slots(replay: Replay, model: Module) -> dict[str, list[Slot]]:
    """Return each weight-bearing layer's trainable parameters of two axes or more."""
    found = {}
    for site, module in weight_layers(model).items():
        own = homes(module)
        slots = [
            slot
            for slot in replay.slots
            if slot.trainable and slot.parameter.ndim >= 2 and any(home in own for home, _ in slot.places)
        ]
        if slots:
            found[site] = slots
    return found
