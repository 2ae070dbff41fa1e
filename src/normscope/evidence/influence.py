"""How much of what a model gives for a sample in evaluation depends on the samples beside it, and where that arises."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree

from normscope._errors import UsageError
from normscope.evidence.calls import Call, cast, copied, outermost_calls
from normscope.evidence.case import Case
from normscope.evidence.losses import in_eval_mode, is_refused
from normscope.evidence.mixing import Mixing, mixing_modules
from normscope.evidence.sandbox import batches, sandbox
from normscope.modules.batches import finite, tensors
from normscope.modules.call import set_mode
from normscope.modules.rng import RngState
from normscope.modules.state import Snapshot
from normscope.usercode import users_code

_CHANGE = 1e-3  # of the root mean square of an output: other kernels for other sizes of batch stay well below
_ROUNDINGS = 32  # of the output's type: in half precision they are more than that

OTHERS, HALF, REVERSED = "other neighbours", "half of the batch", "the batch reversed"


@dataclass(frozen=True, slots=True)
class Influence:
    """How much of what a model gives for a sample in evaluation depends on the samples beside it.

    Attributes:
        changes: By batching, the largest change of a sample's output, in root mean squares of the output.
        bound: What rounding may make of it.
        mixing: The modules that mix samples.
        as_set: Whether the order of neighbours does not matter.
        unseen: Why nothing is known; empty if it is.
    """

    changes: Mapping[str, float] = field(default_factory=dict)
    bound: float = _CHANGE
    mixing: tuple[Mixing, ...] = ()
    as_set: bool = False
    unseen: str = ""

    @property
    def change(self) -> float:
        """The largest change over batchings."""
        return max(self.changes.values(), default=0.0)

    @property
    def found(self) -> bool:
        """Whether outputs depend on neighbours by more than rounding makes."""
        return self.change > self.bound

    @property
    def of_samples(self) -> bool:
        """Whether rows that depend on each other are samples, as far as that can be told: no order, or a batch norm."""
        return self.as_set or any(one.normalizes for one in self.mixing)


def influence_in_evaluation(case: Case) -> Influence:
    """Measure the influence in a batch of evaluation; in a batch of training where it cannot be seen in that.

    Raises:
        UsageError: A loader raises.
    """
    seen = Influence()
    for loader, what in ((case.eval_loader, "eval_loader"), (case.loader, "loader")):
        if loader is None:
            continue
        (batch,) = batches(loader, 1, what=what)
        try:
            seen = measure_influence(case, batch)
        except UsageError as error:
            if is_refused(error):  # a norm without running statistics, and one sample
                seen = Influence(unseen="a batch of evaluation has one sample")
                continue
            return Influence(unseen=str(error if case.eval_loss_fn is not None else in_eval_mode(error)))
        if not seen.unseen:
            break
    return seen


def measure_influence(case: Case, batch: Any) -> Influence:
    """Put a batch together anew and see whether outputs in eval mode change.

    Each outermost call that the loss makes is repeated: as it is, with every second sample replaced by the sample
    before it, with every second sample alone, and in reverse order. Where an output changes, so it must in float64,
    if the model runs in it.

    Args:
        case: The set-up; left as it was.
        batch: A batch of evaluation.

    Returns:
        The influence at the call where it is largest.

    Raises:
        UsageError: The loss raises.
    """
    with sandbox(case):
        set_mode(case.model, False)

        def run() -> None:
            with users_code("the loss of evaluation"):
                case.loss_of(case.model, batch, evaluation=True)

        calls = outermost_calls(case.model, run)
        found = [_Repeated(case.model, call, tensors(batch)).influence() for call in calls]
    if not found:
        return Influence(unseen="the loss calls no part of the model")
    return max(found, key=lambda one: (one.found, not one.unseen, one.change))


class _Repeated:
    """A call that is repeated with other samples beside each."""

    def __init__(self, model: Module, call: Call, batch: list[Tensor]) -> None:
        self.model, self.call, self.batch = model, call, batch
        leaves = tensors((call.args, call.kwargs))
        self.first = next((leaf for leaf in leaves if leaf.ndim), None)
        self.count = 0 if self.first is None else len(self.first)
        self.given = call.args, call.kwargs
        self.others = [leaf for leaf in leaves if leaf.ndim and len(leaf) not in (1, self.count)]

    def influence(self) -> Influence:
        """Measure the influence at this call."""
        if self.count < 2:
            return Influence(unseen="a batch of evaluation has one sample")
        if self.others:
            shape = tuple(self.others[0].shape)
            return Influence(unseen=f"the model is given a tensor of shape {shape}, which is none of samples")
        native = Snapshot(self.model)
        try:
            seen = self._changes(native)
            if seen.change > _CHANGE:  # in half precision rounding may be more than that
                seen = self._confirmed(seen)
            if not seen.found:
                return seen
            lengths = {len(leaf) for leaf in self.batch if leaf.ndim}
            if self._another_axis_holds_the_samples() or not (seen.of_samples or self.count in lengths):
                return Influence(unseen="the first axis of what the model is given may be none of samples")
            return seen
        finally:
            native.restore()

    def _confirmed(self, seen: Influence) -> Influence:
        """Measure again in float64, where the model runs in it, and find the modules."""
        native, given = Snapshot(self.model), self.given
        try:
            self.model.double()
            self.given = cast(given, torch.float64)
            wide = self._changes(Snapshot(self.model))
            if wide.unseen:
                raise TypeError(wide.unseen)
        except Exception:  # types of the user's own choice in between
            native.restore()
            self.given, wide = given, seen
        if not wide.found:
            return wide
        return replace(wide, mixing=mixing_modules(self.call, self.given, self.count))

    def _changes(self, state: Snapshot) -> Influence:
        """Return the change of each batching, from the same state each time."""
        whole, drawn = self._outputs(state, self.given, self.count)
        if not whole or not finite(whole):
            return Influence(unseen="what the model returns in eval mode has no axis of samples, or is not finite")
        floats = [leaf for leaf in (*self.call.module.parameters(), *tensors(self.given)) if leaf.is_floating_point()]
        bound = max([_CHANGE, *(_ROUNDINGS * float(torch.finfo(leaf.dtype).eps) for leaf in floats)])
        if _apart(whole, self._outputs(state, self.given, self.count)[0]) > bound / 2:
            return Influence(unseen="two passes of one batch in eval mode differ")
        changes: dict[str, float] = {}
        for way in _WAYS:
            if drawn and way.name != OTHERS:  # other random numbers for other samples
                continue
            count = len(way.change(whole[0]))
            try:
                made, _ = self._outputs(state, self._changed(way.change), count)
            except Exception:  # a model may want a size of batch, or samples in an order
                continue
            then, now = [t[way.part] for t in whole], [way.back(t) for t in made]
            if len(now) == len(then) and all(a.shape == b.shape for a, b in zip(now, then, strict=True)):
                changes[way.name] = _apart(then, now, whole)
        if HALF not in changes and not drawn:
            return Influence(unseen="the model cannot be called with half of a batch")
        return Influence(changes, bound, as_set=changes.get(REVERSED, math.inf) <= bound)

    def _outputs(self, state: Snapshot, given: Any, count: int) -> tuple[list[Tensor], bool]:
        """Return the outputs that are of so many samples, and whether random numbers were drawn."""
        args, kwargs = copied(given)
        streams = RngState(self.model)
        try:
            with torch.no_grad():
                made = tensors(self.call.module(*args, **kwargs))
            drawn = bool(streams.differences(RngState(self.model)))
        finally:
            state.restore()
        found = [t.detach().double() for t in made if t.is_floating_point() and t.ndim and len(t) == count]
        return found, drawn

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Any:
        return pytree.tree_map_only(
            Tensor, lambda leaf: change(leaf) if leaf.ndim and len(leaf) == self.count else leaf, self.given
        )

    def _another_axis_holds_the_samples(self) -> bool:
        """Whether outputs keep apart along the second axis, as where time comes first, and no labels say otherwise."""
        first = self.first
        assert first is not None
        sequences = first.ndim > 2 or (first.ndim == 2 and not first.is_floating_point())
        if not sequences or any(leaf.ndim == 1 and len(leaf) == self.count for leaf in self.batch):
            return False
        length = first.shape[1]

        def along(leaf: Tensor) -> Tensor:
            if leaf.ndim < 2 or leaf.shape[1] != length:
                return leaf
            return doubled(leaf.transpose(0, 1)).transpose(0, 1)

        def outputs(given: Any) -> list[Tensor]:
            args, kwargs = copied(given)
            with torch.no_grad():
                made = tensors(self.call.module(*args, **kwargs))
            return [t[:, ::2] for t in made if t.is_floating_point() and t.ndim > 1 and t.shape[1] == length]

        try:
            whole, other = outputs(self.given), outputs(pytree.tree_map_only(Tensor, along, self.given))
        except Exception:
            return False
        return length > 1 and bool(whole) and _apart(whole, other) <= _CHANGE


def doubled(leaf: Tensor) -> Tensor:
    """Return samples with every second one replaced by the sample before it."""
    index = torch.arange(len(leaf), device=leaf.device)
    return leaf[index - index % 2]


@dataclass(frozen=True, slots=True)
class _Way:
    """A batching: how samples are put together, how outputs are put back, and which of the outputs before they meet."""

    name: str
    change: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    part: slice


_KEPT, _ALL = slice(None, None, 2), slice(None)
_WAYS = (
    _Way(OTHERS, doubled, lambda t: t[::2], _KEPT),
    _Way(HALF, lambda t: t[::2], lambda t: t, _KEPT),
    _Way(REVERSED, lambda t: t.flip(0), lambda t: t.flip(0), _ALL),
)


def _apart(one: list[Tensor], other: list[Tensor], whole: list[Tensor] | None = None) -> float:
    """Return the largest difference, in root mean squares of the output that differs, over the whole of it."""
    found = 0.0
    for a, b, all_of_it in zip(one, other, whole or one, strict=True):
        scale = float(all_of_it.double().square().mean().sqrt())
        difference = float((a.double() - b.double()).abs().max())
        found = max(found, difference / scale if scale else math.inf if difference else 0.0)
        if math.isnan(difference):
            return math.inf
    return found
