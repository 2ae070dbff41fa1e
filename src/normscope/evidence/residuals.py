"""Residual streams: which sums a network makes, whether norms stand before or behind them, and who reads the last."""

import weakref
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

from torch import Tensor
from torch.nn import Module, MultiheadAttention
from torch.overrides import TorchFunctionMode

from normscope.evidence.case import Case
from normscope.evidence.passes import look
from normscope.evidence.sandbox import sandbox
from normscope.modules.batches import leading_tensor, tensors
from normscope.modules.hooks import under_vmap
from normscope.modules.sites import bears_weight, is_known_norm, normalizes

_SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_NORMS = {"layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm", "normalize"}
_LAYERS = {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "addmm", "einsum"}
# What leaves values, scales them, picks some or averages them: a stream behind it is the same stream.
_CARRIES = {
    "dropout", "mul", "mul_", "__mul__", "__rmul__", "div", "div_", "__truediv__", "to", "type", "type_as", "float",
    "half", "bfloat16", "double", "clone", "contiguous", "detach", "masked_fill", "where", "view", "reshape",
    "flatten", "unflatten", "transpose", "permute", "movedim", "squeeze", "unsqueeze", "unbind", "chunk", "split",
    "select", "__getitem__", "index_select", "gather", "narrow", "roll", "mean", "sum", "amax", "cat", "concat",
    "expand", "swapaxes", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool1d", "avg_pool2d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Tag:
    """What is known of a tensor.

    Attributes:
        state: Number of the values that it is, whatever was picked of them.
        same: This number, and that of the skip where it is a residual sum.
        before: Numbers of what it was computed from.
        through: Of these, what a norm read on the way.
        normed: Whether it is the output of a norm.
        is_sum: Whether it is a residual sum.
        pre: Residual sums since the last norm whose branch began with a norm of the stream.
        post: The norms on the skips of its residual sums.
        begin: Mean square where the stream began that it is a sum of.
    """

    state: int
    same: frozenset[int]
    before: frozenset[int] = frozenset()
    through: frozenset[int] = frozenset()
    normed: bool = False
    is_sum: bool = False
    pre: int = 0
    post: tuple[str, ...] = ()
    begin: float = 0.0


@dataclass(frozen=True, slots=True)
class Head:
    """A layer that reads the last sum of a residual stream without a norm between.

    Attributes:
        place: Qualified name of the layer; where a function reads it, of the module around.
        sums: Residual sums that the stream consists of, each of a branch that begins with a norm.
        size: Mean square of the stream's values there, before any is picked or averaged.
        begin: Mean square of the values to which the first branch was added.
    """

    place: str
    sums: int
    size: float
    begin: float


@dataclass(frozen=True, slots=True)
class Residuals:
    """What was seen of residual streams, in which the output of a branch is added to what the branch has read.

    Attributes:
        pre: Most sums of one stream whose branches begin with a norm of the stream.
        post: The norms that stand on the skips of one stream behind its sums, of the stream that has most.
        heads: Layers that read the last sum of a stream without a norm between.
        ends: Norms that read the last sum of a stream.
        unread: Sums of the longest stream whose last was seen to be read by nothing; 0 where it was read.
    """

    pre: int
    post: tuple[str, ...]
    heads: tuple[Head, ...]
    ends: tuple[str, ...]
    unread: int


def watch_residuals(case: Case, batches: int, norms: Collection[str] = ()) -> Residuals:
    """Look at the residual sums in passes over training batches, without gradient, that leave nothing behind.

    Args:
        case: The set-up.
        batches: Number of batches.
        norms: Qualified names of norms of the user's own.

    Raises:
        UsageError: The loader or the loss raises.
    """
    watcher = _Watcher(norms)
    with sandbox(case), ExitStack() as stack:
        for path, module in case.model.named_modules():
            stack.callback(module.register_forward_pre_hook(partial(watcher.enter, path), with_kwargs=True).remove)
            leave = module.register_forward_hook(partial(watcher.leave, path), always_call=True)
            stack.callback(leave.remove)
        stack.enter_context(watcher)
        look(case, {}, batches, told=watcher.begin)
    return watcher.found()


class _Watcher(TorchFunctionMode):
    """Follows tensors from module to module through every function of torch's that is called between."""

    def __init__(self, norms: Collection[str]) -> None:
        super().__init__()
        self._own_norms = norms
        self._stack: list[tuple[str, Module]] = []
        self._begun = False
        self._inside = 0  # layers and norms are looked at from outside
        self._numbers = count()
        self._tags: dict[int, tuple[Any, _Tag]] = {}
        self._sizes: dict[int, float] = {}  # mean square of what norms read
        self._sums: dict[int, tuple[int, float]] = {}  # by state of a stream: its sums, and its mean square
        self._skips: set[int] = set()
        self._taken: set[int] = set()  # what a function has read that is neither layer nor norm
        self._normed: dict[int, str] = {}
        self._read: dict[tuple[int, str], Head] = {}
        self._post: tuple[str, ...] = ()

    def found(self) -> Residuals:
        """Return what was seen."""
        last = {state: sums for state, (sums, _) in self._sums.items() if state not in self._skips}
        read = {state for state, _ in self._read} | self._normed.keys() | self._taken
        heads = {head.place: head for (state, _), head in self._read.items() if state in last}
        return Residuals(
            max((sums for sums, _ in self._sums.values()), default=0),
            self._post,
            tuple(heads.values()),
            tuple(dict.fromkeys(path for state, path in self._normed.items() if state in last)),
            0 if read & last.keys() else max(last.values(), default=0),
        )

    def begin(self, _batch: int) -> None:
        """Begin to look: a pass before shows only whether the loss takes gradients."""
        self._begun = True

    def _of(self, tensor: Tensor) -> _Tag | None:
        held, tag = self._tags.get(id(tensor), (None, None))
        return tag if held is not None and held() is tensor else None

    def _mark(self, tensor: Tensor, tag: _Tag) -> _Tag:
        self._tags[id(tensor)] = weakref.ref(tensor), tag
        return tag

    def _new(self, given: Iterable[_Tag] = (), **known: Any) -> _Tag:
        """Return the tag of values that were computed from others."""
        state, before, through = next(self._numbers), frozenset[int](), frozenset[int]()
        for tag in given:
            before |= tag.before | tag.same
            through |= tag.through
        return _Tag(state, frozenset([state]), **{"before": before, "through": through, **known})

    def enter(self, path: str, module: Module, args: Any, kwargs: Any) -> None:
        """Note what a layer or norm reads."""
        if not self._begun:
            return
        if not self._stack:
            self._tags.clear()
            self._inside = 0
        self._stack.append((path, module))
        if not self._is_unit(path, module):
            return
        self._inside += 1
        if self._inside > 1 or under_vmap():
            return
        for tensor in _floating((args, kwargs)):
            tag = self._of(tensor) or self._mark(tensor, self._new())
            if self._is_norm(path, module):
                self._sizes.setdefault(tag.state, _mean_square(tensor))
            else:
                self._reads(path, tag)

    def leave(self, path: str, module: Module, args: Any, output: Any) -> None:
        """Note what a layer or norm has made."""
        if not self._begun:
            return
        if self._stack and self._stack[-1][1] is module:
            self._stack.pop()
        if not self._is_unit(path, module):
            return
        self._inside -= 1
        made = leading_tensor(output)
        if self._inside or made is None or under_vmap():
            return
        given = [tag for tensor in _floating(args) if (tag := self._of(tensor)) is not None]
        if self._is_norm(path, module):
            self._normalized(path, made, given)
        else:
            self._mark(made, self._new(given))

    def _reads(self, path: str, tag: _Tag) -> None:
        if tag.state in self._sums:
            sums, size = self._sums[tag.state]
            self._read.setdefault((tag.state, path), Head(path, sums, size, tag.begin))

    def _normalized(self, path: str, made: Tensor, given: list[_Tag]) -> None:
        new = self._new(given)
        if not given:
            self._mark(made, replace(new, normed=True))
            return
        read = given[0]
        self._normed.setdefault(read.state, path)
        post = (*read.post, path) if read.is_sum else read.post
        if read.post and len(post) > len(self._post):
            self._post = post  # a norm behind one sum alone may stand before the head
        self._mark(made, replace(new, through=new.through | read.same, normed=True, post=post))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and pass on what is known of its arguments."""
        watched = self._stack and not self._inside and not under_vmap()
        known = [(t, tag) for t in tensors((args, kwargs or {})) if (tag := self._of(t))] if watched else []
        output = func(*args, **(kwargs or {}))
        if known:
            self._pass_on(getattr(func, "__name__", ""), known, output)
        return output

    def _pass_on(self, name: str, known: list[tuple[Tensor, _Tag]], output: Any) -> None:
        tags = list({tag.state: tag for _, tag in known}.values())
        path = self._stack[-1][0]
        for made in _floating(output):
            if name in _SUMS and len(known) == 2 and known[0][0].shape == known[1][0].shape == made.shape:
                self._add(made, known)
            elif name in _NORMS:
                self._sizes.setdefault(tags[0].state, _mean_square(known[0][0]))
                self._normalized(path, made, tags)
            elif name in _CARRIES and len(tags) == 1:
                self._mark(made, tags[0])
            elif name in _SUMS and len(tags) == 1:  # a bias, a position
                self._mark(made, replace(tags[0], normed=False, **_numbered(self._new(tags))))
            else:
                if name in _LAYERS and len(known) == 1:
                    self._reads(path, tags[0])
                self._taken.update(tag.state for tag in tags)
                self._mark(made, self._new(tags))

    def _add(self, made: Tensor, known: list[tuple[Tensor, _Tag]]) -> None:
        """Mark a sum: of a skip and of a branch that has read it, or of any two."""
        tags = [tag for _, tag in known]
        for skip, branch in (tags, tags[::-1]):
            if skip.same & branch.before:
                break
        else:
            longest = max(tags, key=lambda tag: tag.pre)
            self._mark(made, replace(longest, normed=False, **_numbered(self._new(tags))))
            return
        new = self._new((skip, branch))
        pre, begin = skip.pre, skip.begin
        if begun := skip.same & branch.through:
            begin = begin if pre else self._sizes[max(begun)]
            pre += 1
        elif skip.normed:
            pre = 0
        tag = replace(new, same=new.same | {skip.state}, is_sum=True, pre=pre, post=skip.post, begin=begin)
        if pre:
            self._sums[tag.state] = pre, _mean_square(made)
        self._skips.add(skip.state)
        self._mark(made, tag)

    def _is_norm(self, path: str, module: Module) -> bool:
        return path in self._own_norms or is_known_norm(module) or normalizes(module)

    def _is_unit(self, path: str, module: Module) -> bool:
        if isinstance(module, MultiheadAttention) or self._is_norm(path, module):
            return True
        return bears_weight(module) and not module._modules.keys() - {"parametrizations"}


def _numbered(tag: _Tag) -> dict[str, Any]:
    """Return what is a tensor's own in its tag."""
    return {"state": tag.state, "same": tag.same, "before": tag.before, "through": tag.through, "is_sum": False}


def _floating(values: Any) -> list[Tensor]:
    return [tensor for tensor in tensors(values) if tensor.is_floating_point()]


def _mean_square(x: Tensor) -> float:
    return float(x.detach().double().square().mean()) if x.numel() else 0.0
