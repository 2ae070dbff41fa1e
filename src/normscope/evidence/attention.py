"""Attention: what its softmax makes of the logits, wherever it is called, in passes of the user's own loss."""

import inspect
import math
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter, functional as F
from torch.overrides import TorchFunctionMode

from normscope.evidence.case import Case
from normscope.evidence.passes import look
from normscope.evidence.sandbox import sandbox
from normscope.modules.batches import tensors
from normscope.modules.hooks import under_vmap

_PRODUCTS = {"matmul", "__matmul__", "bmm", "baddbmm", "einsum"}
_KEEPS = {
    "mul", "mul_", "__mul__", "__rmul__", "div", "div_", "__truediv__", "add", "add_", "__add__", "__radd__",
    "__iadd__", "sub", "__sub__", "masked_fill", "masked_fill_", "where", "to", "float", "type", "type_as", "clamp",
    "tanh", "view", "reshape", "unflatten", "flatten", "contiguous", "clone", "maximum", "minimum", "unsqueeze",
}  # fmt: skip
_MOST = 1 << 21  # logits of a call that are looked at
_MASKED = 5e3  # below the largest of a row by so much, a logit stands for a key that is hidden
ROUNDED = 2.0**-20  # what a softmax passes on at most where float32 rounds it away


@dataclass(slots=True)
class Attention:
    """What the softmax of one place makes of its logits.

    Attributes:
        place: Qualified name of the module that calls it.
        queries: Queries that see two keys or more, over heads and samples.
        dead: Of these, the queries whose softmax is one-hot to rounding: the trace of its Jacobian, one less the sum of
            the squares, is below ``ROUNDED``, so that no gradient passes to the logits.
        passed: Sum over queries of this trace, each over the most it can be, that of equal weights.
        entropy: Sum over queries of the entropy of the weights, each over the logarithm of the number of keys.
        largest: Largest absolute logit of a key that is not hidden.
    """

    place: str
    queries: int = 0
    dead: int = 0
    passed: float = 0.0
    entropy: float = 0.0
    largest: float = 0.0


def watch_attention(case: Case, batches: int) -> dict[str, Attention]:
    """Look at all attention in passes over training batches, without gradient, that leave nothing behind.

    Args:
        case: The set-up.
        batches: Number of batches.

    Returns:
        What was seen, by the name of the module that calls the softmax: ``scaled_dot_product_attention``,
        ``MultiheadAttention``, or a softmax over a product of two tensors.

    Raises:
        UsageError: The loader or the loss raises.
    """
    watcher = _Watcher()
    with sandbox(case), ExitStack() as stack:
        for path, module in case.model.named_modules():
            stack.callback(module.register_forward_pre_hook(partial(watcher.enter, path)).remove)
            stack.callback(module.register_forward_hook(watcher.leave, always_call=True).remove)
        stack.enter_context(watcher)
        look(case, {}, batches, told=watcher.begin)
    return watcher.seen


class _Watcher(TorchFunctionMode):
    """Looks at each call of a function of torch's that is attention, or a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Attention] = {}
        self._stack: list[tuple[str, Module]] = []
        self._products: dict[int, Any] = {}
        self._begun = False

    def begin(self, _batch: int) -> None:
        """Begin to look: a pass before shows only whether the loss takes gradients."""
        self._begun = True

    def enter(self, path: str, module: Module, _args: Any) -> None:
        """Note which module runs."""
        if not self._stack:
            self._products.clear()
        self._stack.append((path, module))

    def leave(self, module: Module, *_: Any) -> None:
        """Note that it has run."""
        if self._stack and self._stack[-1][1] is module:
            self._stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and look at the logits if it is attention."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._begun and self._stack and not under_vmap():
            logits = _logits(name, func, args, kwargs)
            if logits is None and name == "softmax" and args and self._is_product(args[0], args, kwargs):
                logits = args[0]
            if logits is not None:
                place = self._stack[-1][0]
                _count(self.seen.setdefault(place, Attention(place)), logits.detach())
        known = name in _KEEPS and any(id(t) in self._products for t in tensors((args, kwargs)))
        output = func(*args, **kwargs)
        if isinstance(output, Tensor) and (known or (name in _PRODUCTS and _is_of_two(args, output))):
            self._products[id(output)] = weakref.ref(output)
        return output

    def _is_product(self, x: Any, args: Any, kwargs: Any) -> bool:
        """Whether a softmax is over the last axis of a product of two tensors, scaled, masked or shaped since."""
        if not isinstance(x, Tensor) or x.ndim < 3:
            return False
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        held = self._products.get(id(x))
        return axis in (-1, x.ndim - 1) and held is not None and held() is x


def _is_of_two(args: Any, output: Tensor) -> bool:
    """Whether both factors of a product were computed: a layer's factor is a parameter."""
    factors = [t for t in tensors(args) if t.is_floating_point() and t.ndim > 1 and not isinstance(t, Parameter)]
    return len(factors) > 1 and output.ndim > 2


def _logits(name: str, func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Return the scaled and masked logits of an attention that is called as one function; None for all others."""
    if name == "scaled_dot_product_attention":
        return _of_products(*args, **kwargs)
    if name == "multi_head_attention_forward":
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        return _of_heads(bound.arguments)
    return None


def _of_products(
    query: Tensor, key: Tensor, value: Any = None, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor | None:  # fmt: skip
    if query.is_nested or query.ndim < 3:
        return None
    most = max(1, _MOST // max(1, query.shape[1:-1].numel() * key.shape[-2]))
    query, key = query[:most].double(), key[:most].double()
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    logits = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal and attn_mask is None:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        mask = attn_mask[:most] if attn_mask.ndim == query.ndim and len(attn_mask) > 1 else attn_mask
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return logits


def _of_heads(given: dict[str, Any]) -> Tensor | None:
    """Return the logits of torch's own multi-head attention, ``(N, heads, L, S)``, from its projections."""
    query, key, weight, bias = given["query"], given["key"], given["in_proj_weight"], given["in_proj_bias"]
    if query.is_nested or given["bias_k"] is not None or given["add_zero_attn"]:
        return None
    query, key = (x.unsqueeze(1) if x.ndim == 2 else x for x in (query, key))  # (L, N, E)
    width, heads = query.shape[-1], given["num_heads"]
    parts = (None, None) if bias is None else bias.chunk(3)[:2]
    if given["use_separate_proj_weight"]:
        weights = given["q_proj_weight"], given["k_proj_weight"]
    else:
        weights = weight.chunk(3)[:2]
    q, k = (
        F.linear(x, w, b).unflatten(-1, (heads, width // heads)).permute(1, 2, 0, 3)
        for x, w, b in zip((query, key), weights, parts, strict=True)
    )
    mask = given["attn_mask"]
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(mask, -math.inf)
    if mask is not None and mask.ndim == 3:
        mask = mask.unflatten(0, (-1, heads)) if len(mask) == q.shape[0] * heads else mask[:, None]
    hidden = given["key_padding_mask"]
    if hidden is not None:
        if hidden.dtype == torch.bool:
            hidden = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill(hidden, -math.inf)
        hidden = hidden.reshape(-1, 1, 1, hidden.shape[-1])
        mask = hidden if mask is None else (hidden + mask)
    causal = bool(given["is_causal"]) and mask is None
    return _of_products(q, k, None, mask, 0.0, causal)


def _count(seen: Attention, logits: Tensor) -> None:
    """Add what the softmax makes of logits ``(..., queries, keys)``."""
    most = max(1, _MOST // max(1, logits[0].numel()))
    logits = logits[:most].double()
    top = logits.amax(-1, keepdim=True)
    shown = (logits > top - _MASKED) & logits.isfinite()
    keys = shown.sum(-1)
    some = keys > 1
    if not bool(some.any()):
        return
    weights = torch.where(shown, (logits - top).exp(), 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    keys, weights = keys[some].double(), weights[some]
    trace = (weights * (1 - weights)).sum(-1)
    seen.queries += int(some.sum())
    seen.dead += int((trace < ROUNDED).sum())
    seen.passed += float((trace / (1 - 1 / keys)).sum())
    seen.entropy += float((-(weights * weights.clamp(min=1e-300).log()).sum(-1) / keys.log()).sum())
    seen.largest = max(seen.largest, float(logits[shown].abs().max()))
