"""The residual stream, block by block and token by token."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from normscope.modules.sites import Tree, bears_weight, chosen, kept_sites, normalizes
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes.remarks import Readings, Remark, Urgency, amount, beyond, called, counted, sentence
from normscope.records import Record

_NAMES = ("variance", "mean_share", "cosine")
_PLACES = ("first", "middle", "last")
_FEWEST = 3  # positions
_SAME = 0.99  # cosine from which on a block hardly turns the stream
_MEAN = 0.5
#: Why a block was not read, or not by position, by the name of a record.
UNREAD = {
    "unread@shape": "its output has another shape than its input",
    "unread@overwritten": "it overwrites its input",
    "unread@positions": "its tokens do not lie along an axis of their own: pooled, or flattened into the batch",
}


class ResidualStream(AbstractProbe):
    r"""Variance, mean component and direction of the stream behind each block, and at single tokens.

    ## Measures
    For each block, a module with parts of its own in a list of modules or a ``Sequential`` whose output has the shape
    of its input, in the user's own forward pass; where a model has no such block, for each norm over the features of
    tokens, such as layer norm. A token is what has
    one value a feature: a position of a sequence or of a map, or a sample without positions. Of the output $y$ of each
    token, and averaged over tokens: ``variance``, the population variance over the features; ``mean_share``, the share
    of the mean square that is the mean over the features squared, $\bar y^2 / \overline{y^2}$, which layer norm takes
    off and RMS norm keeps; ``cosine``, of the block's input and output: 1 where the block adds nothing new. The same of
    the first, the middle and the last position of sequences: ``variance@first``, ``mean_share@middle``,
    ``cosine@last``.

    Features are on the last axis where the block has a layer, RMS norm or dense layer of that width, or attention; else
    on the second. Positions of ``(N, L, C)`` are on the second axis, or on the first in a model whose attention has
    ``batch_first=False``. A block that was not read in a call, or not by position, has a record of value 1 that names
    the reason: ``unread@shape``, ``unread@overwritten``, ``unread@positions``.

    ## Cost
    Four reads of each block's output and two of its input, at the calls.

    ## Reads wrongly when
    A block takes the stream by keyword: such a block is not heard. A batch has sequences of several lengths in padded
    form: padding counts as tokens, and the last position may be padding. Passes repeated by activation checkpointing
    count twice, which changes nothing unless their dropout differs.

    Args:
        sites: Qualified names of modules; the blocks, or else the norms, if None.
        every: Read at every so-many-th step; None takes the scope's schedule.
    """

    CODE = "residual_stream"
    SHOWS = "variance"
    QUESTION = "statistics"
    NOTHING = "no block that keeps the shape of its input, and no norm over the features of tokens, ran in this model"
    STREAMING = True
    SOURCES = (
        "Sun et al. 2025, The Curse of Depth in Large Language Models, arXiv:2502.05795",
        "Zhang and Sennrich 2019, Root Mean Square Layer Normalization, arXiv:1910.07467",
    )

    def __init__(self, sites: Sequence[str] | None = None, *, every: int | None = None) -> None:
        super().__init__(every=every)
        self.sites = None if sites is None else tuple(sites)

    def watch(self, step: Step) -> None:
        """Reduce the input and the output of each block at its call."""
        notes = step.notes(self)
        sites = step.modules(blocks) if self.sites is None else chosen(step.model, self.sites)
        if not sites:
            return
        first = any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in step.model.modules())
        for site, module in sites.items():
            seen: dict[str, Any] = notes.setdefault(site, {"calls": [], "unread": set(), "version": 0})
            step.on_module(self, module, partial(self._begin, seen), before=True)
            step.on_call(self, module, partial(self._take, seen, features_last(module), 0 if first else 1))

    @staticmethod
    def _begin(seen: dict[str, Any], _module: Module, inputs: Any) -> None:
        x = next((x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()), None)
        seen["version"] = None if x is None or x.is_inference() else x._version

    @staticmethod
    def _take(seen: dict[str, Any], widths: frozenset[int], axis: int, x: Tensor, y: Tensor) -> None:
        if x.shape != y.shape or y.ndim < 2 or not y.numel():
            seen["unread"].add("unread@shape")
            return
        if seen["version"] is not None and x._version != seen["version"]:
            seen["unread"].add("unread@overwritten")
            return
        last = y.ndim > 2 and (0 in widths or y.shape[-1] in widths)
        tokens = reduced(x, y, dim=-1 if last else 1)
        values = [tokens.mean(tuple(range(1, tokens.ndim)))]
        if tokens.ndim == 3 and tokens.shape[1 + axis] >= _FEWEST:
            each = tokens.mean(2 - axis)
            values += [each[:, index] for index in (0, each.shape[1] // 2, -1)]
        elif y.ndim == 2:
            seen["unread"].add("unread@positions")
        seen["calls"].append((tokens[0].numel(), torch.stack(values)))

    def read(self, step: Step) -> Iterator[Record]:
        """Average over the calls, weighted by their tokens."""
        for site, seen in step.notes(self).items():
            for suffix, index in (("", 0), *((f"@{place}", 1 + i) for i, place in enumerate(_PLACES))):
                calls = [(count, values[index]) for count, values in seen["calls"] if len(values) > index]
                if calls:
                    total = sum(count for count, _ in calls)
                    values = torch.stack([count / total * each for count, each in calls]).sum(0).tolist()
                    for name, value in zip(_NAMES, values, strict=True):
                        yield self.record(step, site, f"{name}{suffix}", value)
            for name in sorted(seen["unread"]):
                if seen["calls"] or name != "unread@shape":  # else it is no block: a head, say
                    yield self.record(step, site, name, 1.0)

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of blocks that hardly turn the stream, of a large mean component, and of what was not read."""
        if same := beyond(readings, "cosine", above=_SAME):
            yield same.remark(
                "{site} passes on what it reads: the cosine of its input and output is {value} to two digits",
                "{where} pass on what they read, most {site}: the cosine of input and output is {value} to two digits",
                amount,
                Urgency.NOTABLE,
                "block",
            )
        if mean := beyond(readings, "mean_share", above=_MEAN):
            yield mean.remark(
                "of the stream behind {site} the mean over the features is {value}: RMS norm keeps it",
                "the mean over the features is a large share of the stream in {where}, most behind {site}: {value}",
                amount,
                Urgency.NOTABLE,
                "block",
            )
        for name, why in UNREAD.items():
            if sites := tuple(readings.values.get(name, {})):
                what = "by position" if name == "unread@positions" else "in some calls"
                named = ", ".join(map(called, sites[:3])) + ", ..." * (len(sites) > 3)
                says = sentence(f"{counted(len(sites), 'block is', 'blocks are')} not read {what} ({named}): {why}")
                yield Remark(says, Urgency.NOTABLE, 0.0, sites, name)


def reduced(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """Return variance, share of the mean and cosine of each token, ``(3, ...)`` in float64.

    Args:
        x: What the block has read.
        y: What it has made.
        dim: The axis of the features.
    """
    x, y = (part if part.dtype == torch.float64 else part.float() for part in (x, y))
    middle = y.mean(dim, keepdim=True)
    # Torch's own variance and norms along an axis that is not the last take six times as long as these.
    variance = (y - middle).square_().mean(dim).double()
    square = middle.squeeze(dim).double().square()
    lengths = [torch.linalg.vecdot(part, part, dim=dim).sqrt().double() for part in (x, y)]
    product, both = torch.linalg.vecdot(x, y, dim=dim).double(), lengths[0] * lengths[1]
    # A token of zeros has no direction, and no mean.
    share = torch.where(variance + square > 0, square / (variance + square).clamp(min=1e-300), 0.0)
    return torch.stack([variance, share, torch.where(both > 0, product / both.clamp(min=1e-300), 0.0)])


def blocks(model: Module, tree: Tree) -> dict[str, Module]:
    """Return the modules with parts that stand in lists and sequences and bear weight; without any, norms of tokens.

    A norm over channels, such as batch norm, stands on no stream of tokens: a network of such norms has none.

    Args:
        model: The model.
        tree: Its modules.
    """
    return kept_sites(model, blocks, tree, lambda: _blocks(tree))


def _blocks(tree: Tree) -> dict[str, Module]:
    named = {id(module): name for name, module in tree.modules}
    found: dict[str, Module] = {}
    for _, parent in tree.modules:
        if not isinstance(parent, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
            continue
        for child in parent.children():
            if any(bears_weight(inner) for inner in child.modules() if inner is not child) and id(child) in named:
                found[named[id(child)]] = child
    listed = {name: module for name, module in tree.modules if name in found}
    return listed or {name: module for name, module in tree.modules if normalizes(module) and features_last(module)}


def features_last(module: Module) -> frozenset[int]:
    """Return the widths of the last axis that a block's layers act on; 0 among them where attention says so anyway."""
    found: set[int] = set()
    for inner in module.modules():
        if isinstance(inner, (nn.LayerNorm, nn.RMSNorm)) and len(inner.normalized_shape) == 1:
            found.add(inner.normalized_shape[0])
        elif isinstance(inner, nn.Linear):
            found.add(inner.in_features)
        elif isinstance(inner, nn.MultiheadAttention):
            found.add(0)
        elif "norm" in type(inner).__name__.lower() and "batch" not in type(inner).__name__.lower():
            weight = getattr(inner, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim == 1 and not hasattr(inner, "num_channels"):
                found.add(len(weight))
    return frozenset(found)
