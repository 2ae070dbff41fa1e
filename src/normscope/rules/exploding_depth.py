"""Gradients that grow with depth."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from statistics import median_high
from typing import Any

import torch
from torch import nn

from normscope.evidence import (
    Case,
    Evidence,
    Finding,
    NotShownError,
    Severity,
    examples,
    innermost,
    look,
    modules_of,
    sandbox,
)
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_RATIO, _GROWTH, _LAYERS, _TOTAL = 1e3, 1.12, 10, 40.0
_SHIFT = 2.0


def _plain_maps(norm: examples.Norm = nn.BatchNorm2d, *, depth: int = 30, skips: bool = False) -> nn.Module:
    """A deep stack of convolutions, with skips or without."""
    return _Deep(lambda: nn.Conv2d(6, 6, 3, padding=1, bias=False), lambda: norm(6), depth, skips, nn.Conv2d(3, 6, 1))


def _plain_sequence(norm: examples.Norm = nn.BatchNorm1d, *, depth: int = 40) -> nn.Module:
    """A deep stack along a sequence."""
    return _Deep(lambda: nn.Conv1d(8, 8, 3, padding=1), lambda: norm(8), depth, False, nn.Conv1d(12, 8, 1))


class _Deep(nn.Module):
    def __init__(self, layer: Any, norm: Any, depth: int, skips: bool, stem: nn.Module) -> None:
        super().__init__()
        self.stem, self.skips = stem, skips
        self.blocks = nn.ModuleList(nn.Sequential(layer(), norm(), nn.ReLU()) for _ in range(depth))
        width = self.blocks[0][1].num_features  # type: ignore[index]
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x) if self.skips else block(x)
        return self.head(x.flatten(2).mean(2))


def _even(layers: int) -> list[str]:
    """Return the names of so many layers, each before an activation."""
    return [str(2 * index) for index in range(layers)]


def _plain_dense(gain: float = 1.6, *, depth: int = 20, last: Any = None) -> nn.Module:
    """A deep dense network without norms, with weights so many times as large as keeps the size of what passes."""
    parts: list[nn.Module] = []
    inputs = 12
    for _ in range(depth):
        linear = nn.Linear(inputs, 32, bias=False)
        nn.init.normal_(linear.weight, std=gain * (2 / inputs) ** 0.5)
        parts += [linear, nn.ReLU()]
        inputs = 32
    return nn.Sequential(*parts, *([] if last is None else [last]), nn.Linear(inputs, 4))


def _scaled(gain: float) -> Case:
    """Orthogonal layers without norms, times a gain: outputs and gradients grow by it exactly."""
    case = examples.deep_with_scaled_gradients(1.0, 20, norm=False)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.mul_(gain)
    return case


class ExplodingDepth(AbstractRule):
    r"""Gradients, or what passes, grow from layer to layer.

    ## Finds
    In the first training step, by layer that bears weight, the root mean square of the gradient at its output and the
    norm of that of its weights. Found is a network whose first layers have, by both measures, more than 1000 times the
    gradient of its last; or in which both grow by more than 1.12 a layer (least squares over at least 10 layers), and
    by more than 40 over the depth. Batch norm and ReLU at initialization give $\sqrt{\pi/(\pi-1)} = 1.21$ a layer
    without skips: the second bound is met from about 20 layers. Networks with skips stay far below.

    Without norms the gradient of weights does not show it: it is a gradient at an output, which grows toward the input,
    times an activation, which grows away from it. So the same bounds hold, in its place, for the root mean square of
    the layers' outputs from the first to the last, unless a norm before the last layer has undone the growth. Of a
    short network (5 to 12 layers) the growth over its depth is that of the least-squares line.

    Calibrated over six seeds: planted defects found, 36 of 36; false alarms on 47 healthy set-ups under six seeds,
    0 of 282.

    ## Why it hurts
    Batch norm keeps activations in bounds and pays with gradients: each layer divides by the standard deviation of what
    the activation has cut down. The first layers take steps that are larger by orders of magnitude; no learning rate
    fits both ends, and 50 layers of it do not train. Without norms, weights 1.6 times too large in 20 layers make
    outputs 10,000 times as large: the first loss is in the tens of thousands, and the first step throws them away.

    ## Fix
    Unsafe: shifts of the norms start at 2, so that activations work where they are nearly linear and hardly cut (a
    measured growth of 1.02 to 1.05 a layer). Only for norms as made, gain 1 and shift 0. Better: skip connections.
    Without norms, weights and shifts of each layer are divided by the root mean square of its output on a batch, layer
    by layer, as for a network at its start: what a trained network computes, it changes.
    """

    CODE = "NS126"
    SLUG = "exploding-depth"
    SEVERITY = Severity.WARNING
    NEEDS = ("gradient",)
    KEEPS = ()
    SOURCES = (
        "Yang et al. 2019, A Mean Field Theory of Batch Normalization (arXiv:1902.08129)",
        "Mishkin and Matas 2016, All you need is a good init (arXiv:1511.06422)",
    )
    SICK = (
        partial(examples.healthy, examples.mlp, trained=0, depth=30),
        partial(examples.healthy, examples.mlp, trained=0, depth=50, width=32),
        partial(examples.healthy, _plain_maps, trained=0, shape=(3, 8, 8)),
        partial(examples.healthy, _plain_sequence, trained=0, shape=(12, 9)),
        examples.Planted(partial(examples.healthy, _plain_dense, trained=0, shape=(12,)), _even(21)),
        examples.Planted(
            partial(examples.healthy, partial(_plain_dense, 12.0, depth=5), trained=0, shape=(12,)), _even(6)
        ),
    )
    WELL = (
        partial(examples.healthy, examples.mlp, trained=0),
        partial(examples.healthy, examples.mlp, trained=0, depth=12),
        partial(examples.healthy, partial(_plain_maps, skips=True), trained=0, shape=(3, 8, 8)),
        partial(examples.healthy, examples.residual, trained=0),
        partial(examples.healthy, partial(_plain_dense, 1.0), trained=0, shape=(12,)),
        partial(examples.healthy, partial(_plain_dense, 1.6, last=nn.LayerNorm(32)), trained=0, shape=(12,)),
    )
    NEAR = (
        examples.Near(_scaled, found=1.25, quiet=1.23),
        examples.Near(lambda growth: examples.deep_with_scaled_gradients(growth, 48), found=1.135, quiet=1.105),
        examples.Near(lambda depth: examples.deep_with_scaled_gradients(1.25, depth), found=22, quiet=21),
        examples.Near(lambda growth: examples.deep_with_scaled_gradients(growth, 10), found=3.3, quiet=3.0),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Fit the growth of the gradients of the first step."""
        at_outputs = innermost(evidence.training.values("gradient_flow", "output_norm"))
        of_weights = evidence.training.values("gradient_flow", "norm")
        sites = [site for site in at_outputs if site in of_weights]
        if len(sites) < 3:
            return
        outputs, weights = [at_outputs[site] for site in sites], [of_weights[site] for site in sites]
        if not all(math.isfinite(value) and value > 0 for value in (*outputs, *weights)):
            return
        ratio, growth = (min(pair) for pair in zip(_measured(outputs), _measured(weights), strict=True))
        words = "those of the first are {:.3g} times those of the last"
        what = "gradient of the first layers over that of the last"
        grown = "gradients"
        if not _explodes(ratio, growth, len(sites)):
            # Without norms gradients of weights hide it: they are a gradient at the output, which grows toward the
            # input, times an activation, which grows away from it.
            ratio, growth = _of_outputs(evidence, sites, outputs)
            if not _explodes(ratio, growth, len(sites)):
                return
            words = "the outputs of the last are {:.3g} times those of the first"
            what = "output of the last layers over that of the first"
            grown = "outputs, and gradients toward the input,"
        steady = _steady(growth, len(sites))
        by_layer = max(growth, ratio ** (1 / len(sites)))
        norms = evidence.norms
        young = all(_as_made(module) for module in norms.values())
        yield self.finding(
            f"over {len(sites)} layers {grown} grow by {by_layer:.3g} a layer: {words.format(ratio)}",
            list(norms) or sites,
            quantity=what if not steady else "growth a layer",
            measured=growth if steady else ratio,
            bound=_GROWTH if steady else _RATIO,
            cost="no learning rate fits both ends of the network",
            fix="add skip connections; or start the shifts of the norms at 2"
            if norms
            else "start with weights that keep the size of what passes (He), add norms, or skip connections",
            fixable=young and (bool(norms) or grown != "gradients"),
            details={"ratio": ratio, "growth": growth, "layers": float(len(sites))},
        )

    @torch.no_grad()
    def repair(self, case: Case, finding: Finding) -> str:
        """Start the shifts of the norms at 2; without norms, give each layer weights that keep the size."""
        if not any(_is_batch_norm(module) for module in modules_of(case, finding)):
            return _keep_sizes(case, modules_of(case, finding))
        moved = [module for module in modules_of(case, finding) if _as_made(module)]
        for module in moved:
            module.bias.fill_(_SHIFT)
        return f"set the shift of {counted(len(moved), 'norm')} to {_SHIFT:g}"


def _is_batch_norm(module: Any) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _keep_sizes(case: Case, layers: Sequence[Any]) -> str:
    """Divide weights and shifts of each layer, in the order of their use, by the root mean square of its output."""
    sizes: dict[int, float] = {}

    def divide(module: Any, _args: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor):
            return None
        size = sizes.setdefault(id(module), float(output.double().square().mean().sqrt()) or 1.0)
        return output / size

    with sandbox(case):
        handles = [layer.register_forward_hook(divide) for layer in layers]
        try:
            look(case, {}, 1)
        finally:
            for handle in handles:
                handle.remove()
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            parameter.div_(sizes.get(id(layer), 1.0))
    return f"divided weights and shifts of {counted(len(sizes), 'layer')} by the size of what they put out"


def _explodes(ratio: float, growth: float, layers: int) -> bool:
    return ratio > _RATIO or _steady(growth, layers)


def _steady(growth: float, layers: int) -> bool:
    return growth > _GROWTH and growth ** (layers - 3) > _TOTAL


def _measured(values: Sequence[float]) -> tuple[float, float]:
    """Return how much larger the first values are than the last, and by what factor a layer they grow."""
    # The last layer's gradient is the loss's own, the first one's the data's: the rest shows what depth does.
    ratio = median_high(values[:3]) / median_high(values[-4:-1])
    return ratio, _growth(values[1:-1]) if len(values) > _LAYERS + 2 else 0.0


def _trend(values: Sequence[float]) -> tuple[float, float]:
    """Return the same as ``_measured``, with the ratio of a short network from its growth."""
    ratio, growth = _measured(values)
    short = 4 < len(values) <= _LAYERS + 2
    return max(ratio, _growth(values[:-1]) ** (len(values) - 2)) if short else ratio, growth


def _of_outputs(evidence: Evidence, sites: Sequence[str], gradients: Sequence[float]) -> tuple[float, float]:
    """Return by how much outputs grow away from the input, no more than gradients at them do toward it."""
    if not _explodes(*_trend(gradients), len(sites)):
        return 0.0, 0.0
    try:
        sizes = [evidence.wiring.sizes.get(site, 0.0) for site in sites]
    except NotShownError:
        return 0.0, 0.0
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        return 0.0, 0.0
    if sizes[-1] < _TOTAL * median_high(sizes[:3]):
        return 0.0, 0.0  # a norm before the last layer has undone it: then size does not matter to a ReLU network
    ratio, growth = (min(pair) for pair in zip(_trend(gradients), _trend([1 / size for size in sizes]), strict=True))
    return ratio, growth


def _as_made(module: Any) -> bool:
    """Whether a norm has a gain and a shift as at initialization."""
    if module.weight is None or module.bias is None:
        return False
    return bool((module.weight == 1).all()) and not bool(module.bias.any())


def _growth(values: Sequence[float]) -> float:
    """Return the factor a layer by which values grow from the last to the first, by least squares on their logs."""
    centre = (len(values) - 1) / 2
    slope = sum((index - centre) * math.log(value) for index, value in enumerate(values))
    return math.exp(-slope / sum((index - centre) ** 2 for index in range(len(values))))
