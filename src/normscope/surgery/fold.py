"""Take batch norms into the weights of the linear layers and convolutions next to them, for inference.

**What it does.** A batch norm in evaluation mode is a scale and a shift per channel. After ``Linear``, ``Conv1-3d`` or
``ConvTranspose1-3d`` it is always expressible in that layer's weight and bias; before one, where padding allows. The
norm is replaced by an identity at the same path, so the model's own code runs as before. Weights stay the same
``Parameter`` objects; a bias is created where there was none (an optimizer does not know of it).

**What is proven.** For each pair, in float64, on what the layers are given with the ``example`` (without one, on normal
values): the largest difference between *layer, then norm* and *the layer as it is now stored*, rounding to its type
included, beside the largest value. A pair above ``bound`` is rolled back. With an example the whole model is compared
before and after as well; if that fails, the pairs are tried one at a time and the guilty ones are rolled back. The
numbers are in the report.

**What is refused, with the reason in the report.** A norm in training mode, without running statistics, called more
than once, of a class of its own that computes something else (what is seen to compute the same is folded, and an
activation behind it stays); a layer whose output is used twice, that is called twice, is shared, tied, parametrised or
hooked; an activation in between; a linear layer whose last axis is not the norm's channel axis; a norm *before* a
convolution that pads with zeros (they would have been shifted), unless the shift is zero; a norm before a transposed
convolution, likewise. Low precision: in bfloat16 and float16 the rounding of the weights alone exceeds the bound.

**How the pairs are found.** By ``torch.fx``; else ``torch.export`` of the example; else watching an example forward.
What cannot be seen is not folded. Branches on shapes are taken as the example takes them where ``torch.fx`` fails.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from normscope.modules.batches import tensors
from normscope.modules.call import run
from normscope.modules.state import traceless, transaction
from normscope.surgery import absorb
from normscope.surgery._report import Change, Report, Skip
from normscope.surgery._sites import Only, Site, norms
from normscope.surgery.foreign import readings, with_batch_norms
from normscope.surgery.freeze import is_frozen
from normscope.surgery.functional import without_modules
from normscope.surgery.pairs import MISSING, Pair, Search, search, why_not_fixed

_ORDERS: tuple[Literal["before", "after"], ...] = ("before", "after")


class _Folded:
    """A folded pair, its proof, and the way back."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        norm: Any = pair.norm.module
        linear: Any = pair.linear.module
        s, t = absorb.scale_and_shift(norm, norm.running_mean, norm.running_var)
        x = absorb.sample_input(linear) if pair.input is None else pair.input.double()
        with torch.no_grad():
            expected = self._both(x)
            weight, bias = (absorb.before if pair.order == "before" else absorb.after)(linear, s, t)
            self.created = linear.bias is None
            self.values = weight, bias
            self._unwrite = absorb.write(linear, weight, bias)
            self.error = absorb.deviation(expected, absorb.widened(linear)(x))
        self.identity = nn.Identity().train(norm.training)
        pair.norm.replace(self.identity)

    def _both(self, x: Tensor) -> Tensor:
        norm, linear = absorb.widened(self.pair.norm.module), absorb.widened(self.pair.linear.module)
        return norm(linear(x)) if self.pair.order == "before" else linear(norm(x))

    def undo(self) -> None:
        self._unwrite()
        self.pair.norm.replace(self.pair.norm.module)

    def redo(self) -> None:
        self._unwrite = absorb.write(self.pair.linear.module, *self.values)
        self.pair.norm.replace(self.identity)

    def change(self, whole: float | None) -> Change:
        what = f"folded into {self.pair.linear.path}, which stands {self.pair.order} it"
        numbers = {"error": self.error} | ({} if whole is None else {"error_of_model": whole})
        return Change(self.pair.norm.path, what, "a bias was created" if self.created else "", numbers)


def fold(model: nn.Module, example: Any = MISSING, *, only: Only = None, bound: float = 1e-4) -> Report:
    """Fold batch norms in evaluation mode into the layers next to them.

    Args:
        model: The model, changed in place.
        example: Input to the model: one, a tuple of arguments, or a mapping of keyword arguments. Needed for linear
            layers, where the axes of the input decide, and where ``torch.fx`` cannot trace the model; it also gives
            the proof real values. The model is run on it without a trace.
        only: Which norms: None for all; a predicate of path and module; or names, of which ``*`` stands for anything.
        bound: Largest difference, beside the largest value, that is accepted.

    Returns:
        What was folded, with ``numbers["error"]`` as proof (and ``"error_of_model"`` after it, with an example), and
        what was skipped and why.

    Raises:
        UsageError: A name in ``only`` fits no norm.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fold(model)["1"].what
        'folded into 0, which stands before it'
    """
    with transaction(model):
        chosen = norms(model, only)
        before = _outputs(model, example)
        placed, left, notes = with_batch_norms(chosen, readings(chosen))
        seen = search(model, example)
        folded, skipped = _fold_all([each.known for each in placed], seen, bound)
        whole = _guilty(model, example, before, folded, skipped, bound)
        done = {one.pair.norm.path: one.change(whole) for one in folded}
        for each in placed:
            if each.known.path not in done:
                each.put_back()
    by_path = {each.known.path: each for each in placed}
    left += [by_path[skip.path].named(skip) for skip in skipped]
    notes += (f"pairs were found by {seen.flow.seen_by}",) if seen.flow else ()
    changes = tuple(by_path[path].named(change) for path, change in done.items())
    return Report(model, changes, tuple(left), (*notes, *without_modules(model, chosen)))


def _fold_all(chosen: list[Site], seen: Search, bound: float) -> tuple[list[_Folded], list[Skip]]:
    folded: list[_Folded] = []
    skipped: list[Skip] = []
    for site in chosen:
        why = why_not_fixed(site)
        if why is None and site.module.training and not is_frozen(site.module):
            why = "is in training mode, where its statistics are those of each batch: call model.eval() first"
        reasons: list[str] = []
        for order in _ORDERS if why is None else ():
            outcome = _try(site, order, seen, bound)
            if isinstance(outcome, _Folded):
                folded.append(outcome)
                break
            if outcome not in reasons:
                reasons.append(outcome)
        else:
            skipped.append(Skip(site.path, why or "; ".join(reasons)))
    return folded, skipped


def _try(site: Site, order: Literal["before", "after"], seen: Search, bound: float) -> _Folded | str:
    pair = seen.pair(site, order)
    if isinstance(pair, str):
        return pair
    norm: Any = site.module
    linear: Any = pair.linear.module
    if not linear.weight.is_floating_point() or linear.weight.is_meta:
        return f"{pair.linear.path} has no real floating-point weights"
    s, t = absorb.scale_and_shift(norm, norm.running_mean, norm.running_var)
    if not (s.isfinite().all() and t.isfinite().all()):
        return "its scale or shift is not finite: a running statistic is, or a variance is below -eps"
    if order == "after" and (why := absorb.why_not_after(linear, t)):
        return why
    one = _Folded(pair)
    if one.error <= bound:
        return one
    one.undo()
    kind = pair.linear.module.weight.dtype
    return f"rolled back: the folded {pair.linear.path} is off by {one.error:.1e}, more than {bound:g} ({kind})"


def _guilty(
    model: nn.Module, example: Any, before: list[Tensor], folded: list[_Folded], skipped: list[Skip], bound: float
) -> float | None:
    """Compare the whole model with what it was, and roll back the folds that changed it."""
    if example is MISSING or not folded:
        return None

    def error() -> float:
        after = _outputs(model, example)
        if [a.shape for a in after] != [b.shape for b in before]:
            return torch.inf
        pairs = zip(before, after, strict=True)
        return max((absorb.deviation(b.double(), a.double()) for b, a in pairs), default=0.0)

    whole = error()
    if whole <= bound:
        return whole
    for one in reversed(folded):
        one.undo()
    good: list[_Folded] = []
    for one in folded:
        one.redo()
        found = error()
        if found <= bound:
            good.append(one)
            whole = found
        else:
            one.undo()
            skipped.append(Skip(one.pair.norm.path, f"rolled back: the model's output is off by {found:.1e}"))
    folded[:] = good
    return whole


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """Return the tensors that the model gives for the example; none without one."""
    if example is MISSING:
        return []
    with traceless(model):
        torch.manual_seed(0)  # what is drawn at random (dropout in training mode) is drawn the same before and after
        return [tensor.detach().clone() for tensor in tensors(run(model, example))]
