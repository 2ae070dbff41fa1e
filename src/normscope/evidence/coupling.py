"""Gradients of outputs by inputs that a loss takes, and how much of them lies between samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from normscope.evidence.calls import Call, copied, outermost_calls
from normscope.evidence.case import Case
from normscope.evidence.mixing import Mixing, mixing_modules
from normscope.evidence.sandbox import batches, sandbox
from normscope.modules.batches import tensors
from normscope.modules.sites import batch_norms
from normscope.modules.state import traceless
from normscope.usercode import users_code

_ROWS = 8  # samples whose outputs are followed back to all inputs
_NODES = 10_000  # of a graph of operations: so far it is followed
_CALLS = 8


@dataclass(frozen=True, slots=True)
class Coupling:
    """How much of the gradients of outputs by inputs lies between samples, at a call that a loss takes them of.

    Attributes:
        between: Share of the lengths of the blocks of the Jacobian, outputs of a sample by an input, that belong to the
            input of another sample: over some rows of blocks.
        fixed: The same with the batch norms in eval mode.
        error: Distance of the gradient of the sum of all outputs from the gradient of a sample's own, over the latter.
        mixing: The modules that mix samples in that call.
    """

    between: float
    fixed: float
    error: float
    mixing: tuple[Mixing, ...]


def input_gradients(case: Case) -> list[Call]:
    """Return the calls of the model in a training step by whose inputs the loss takes gradients that it trains on.

    They are seen where ``torch.autograd.grad`` or ``backward`` is called with ``create_graph=True``, by an input of the
    call or by what the input was made of.

    Args:
        case: The set-up; left as it was.

    Raises:
        UsageError: The loader, the loss or the step raises.
    """
    with sandbox(case):
        (batch,) = batches(case.loader, 1)
        gradients = _Gradients()

        def act() -> None:
            what = "the loss of batch 0 of the loader" if case.step is None else "training step 0"
            with users_code(what), torch.enable_grad(), gradients:
                if case.step is not None:
                    case.step(case.model, batch)
                else:
                    case.loss_fn(case.model, batch)

        calls = outermost_calls(case.model, act, most=_CALLS)
        own = set(map(id, case.model.parameters()))
        by = [tensor for tensor in gradients.by if id(tensor) not in own]
        if gradients.backward:  # to all that are leaves
            by += [leaf for call in calls for leaf in call.given if leaf.is_leaf and id(leaf) not in own]
        return [call for call in calls if any(_is_made_of(leaf, by) for leaf in call.given)]


def coupling_of(case: Case, call: Call) -> Coupling | None:
    """Return how much of the gradients of a call's outputs by its inputs lies between samples.

    Args:
        case: The set-up; left as it was.
        call: The call; its modes are those of then.

    Returns:
        The coupling; None where outputs and inputs have no axis of samples in common, or no gradient joins them.
    """
    with sandbox(case), traceless(call.module):
        for module, mode in call.modes:
            module.training = mode
        found = _coupling(call)
        if found is None or not found[0]:
            return None if found is None else Coupling(0.0, 0.0, found[1], ())
        count = len(next(leaf for leaf in call.given if leaf.requires_grad))
        mixing = mixing_modules(call, (call.args, call.kwargs), count)
        for module in batch_norms(call.module).values():
            module.training = False
        fixed = _coupling(call)
    return Coupling(found[0], found[0] if fixed is None else fixed[0], found[1], mixing)


class _Gradients(TorchFunctionMode):
    """Notes gradients that keep their graph.

    Attributes:
        by: The tensors by which they were taken.
        backward: Whether a backward pass has made such.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by: list[Tensor] = []
        self.backward = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the tensors and make the call."""
        kwargs = kwargs or {}
        if func is torch.autograd.grad and (kwargs.get("create_graph") or (len(args) > 4 and args[4])):
            by = args[1] if len(args) > 1 else kwargs.get("inputs")
            self.by.extend(tensors(by if isinstance(by, Tensor) else list(by)))
        self.backward = self.backward or (func is Tensor.backward and bool(kwargs.get("create_graph")))
        return func(*args, **kwargs)


def _is_made_of(leaf: Tensor, by: Sequence[Tensor]) -> bool:
    """Whether a tensor is one of others, or was computed from one."""
    if not leaf.requires_grad or not by:
        return False
    if any(leaf is tensor for tensor in by):
        return True
    wanted = {id(tensor.grad_fn) for tensor in by if tensor.grad_fn is not None}
    leaves = {id(tensor) for tensor in by}
    left, seen = [leaf.grad_fn], set[Any]()
    while left and len(seen) < _NODES:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(node) in wanted or id(getattr(node, "variable", None)) in leaves:
            return True
        left += [before for before, _ in node.next_functions]
    return False


def _coupling(call: Call) -> tuple[float, float] | None:
    """Return the share of the Jacobian between samples, and the error of the gradient of the sum of outputs."""
    args, kwargs = copied((call.args, call.kwargs))
    index = next(i for i, leaf in enumerate(call.given) if leaf.requires_grad)
    x = tensors((args, kwargs))[index].requires_grad_()
    with torch.enable_grad(), traceless(call.module):
        made = [t for t in tensors(call.module(*args, **kwargs)) if t.requires_grad and t.ndim and len(t) == len(x)]
        if not made or len(x) < 2:
            return None
        outputs = torch.cat([t.flatten(1) if t.ndim > 1 else t[:, None] for t in made], 1).double()
        stream = torch.Generator().manual_seed(0)
        signs = torch.randint(2, outputs.shape[1:], generator=stream).to(outputs) * 2 - 1
        scores = outputs @ signs
        (whole,) = torch.autograd.grad(scores.sum(), x, retain_graph=True)
        between = total = away = own = 0.0
        for row in torch.linspace(0, len(x) - 1, min(_ROWS, len(x))).long().tolist():
            (gradient,) = torch.autograd.grad(scores[row], x, retain_graph=True)
            lengths = gradient.double().flatten(1).norm(dim=1) if x.ndim > 1 else gradient.double().abs()
            between += float(lengths.sum() - lengths[row])
            total += float(lengths.sum())
            away += float((whole[row] - gradient[row]).double().norm())
            own += float(lengths[row])
    return (between / total, away / own if own else 0.0) if total else None
