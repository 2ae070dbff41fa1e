"""Gradients that die on their way to the input."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from statistics import median_high
from typing import Any

import torch
from torch import Tensor, nn

from normscope import layers
from normscope.evidence import (
    Activation,
    Case,
    Evidence,
    Finding,
    NotShownError,
    Severity,
    childless,
    examples,
    innermost,
    is_known_norm,
    look,
    replace_module,
)
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_RATIO, _SATURATED = 1e-3, 0.5
_NORMS = {2: layers.BatchNorm1d, 3: layers.BatchNorm1d, 4: layers.BatchNorm2d, 5: layers.BatchNorm3d}
_ACTIVATIONS = (nn.Tanh, nn.Sigmoid, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus)


def _squashed(
    *, act: Any = nn.Tanh, depth: int = 4, scale: float = 1.0, norm: bool = False, bias: bool = True
) -> nn.Module:
    """A dense network of tanh or sigmoid, with weights too large or not."""
    parts: list[nn.Module] = []
    inputs = 12
    for _ in range(depth):
        linear = nn.Linear(inputs, 24, bias=bias)
        nn.init.normal_(linear.weight, std=scale / inputs**0.5)
        parts += [linear, *([nn.BatchNorm1d(24)] if norm else []), act()]
        inputs = 24
    return nn.Sequential(*parts, nn.Linear(inputs, 4))


class _SquashedMaps(nn.Module):
    """Convolutions with large weights and tanh."""

    def __init__(self, scale: float = 6.0) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        for conv in (self.one, self.two):
            nn.init.normal_(conv.weight, std=scale / (conv.in_channels * 9) ** 0.5)
        self.act1, self.act2, self.head = nn.Tanh(), nn.Tanh(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.two(self.act1(self.one(x)))).mean((2, 3)))


def _probability(scale: float = 12.0) -> nn.Module:
    """A healthy network that ends in a sigmoid: sure of itself, which is no defect."""
    last = nn.Linear(16, 4)
    nn.init.normal_(last.weight, std=scale)
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), last, nn.Sigmoid())


def _vectors(net: Any) -> Case:
    return examples.healthy(net, trained=0, shape=(12,))


def _odd(count: int) -> list[str]:
    """Return the names of so many activations, each behind a layer."""
    return [str(2 * index + 1) for index in range(count)]


def _zero_gains(model: nn.Module) -> None:
    """The last gain of each residual branch starts at zero, as recipes have it: no gradient enters the branches."""
    for block in model.get_submodule("blocks").children():
        nn.init.zeros_(examples.norms(block)[-1].weight)


def _saturating(share: float) -> Case:
    """A tanh between two layers, of whose outputs this share is near 1."""
    rows = torch.arange(100) < 100 * share
    x = torch.where(rows[:, None], 5.0, 0.1).expand(100, 12) + 0.01 * torch.arange(12)
    model = nn.Sequential(nn.Tanh(), nn.Linear(12, 4)).train()
    return Case(model, examples.mean_square, [x] * 4, torch.optim.SGD(model.parameters(), lr=0.01))


class VanishingDepth(AbstractRule):
    r"""Gradients die on their way to the input: saturated activations, or too many of them.

    ## Finds
    In the first training step: a tanh or sigmoid, module or function, that more than half of whose outputs lie within
    1.5 % of its range from an end; or first layers whose gradient, at outputs and of weights, is below a thousandth of
    that of the last. Where what passes fades away from the input as gradients at it do toward the input (small weights
    without shifts), gradients of weights show neither: then outputs of the last layers below a thousandth of those of
    the first stand for them. An activation that makes the model's output is passed over, and a gate, by whose outputs
    other values are multiplied: both may be sure of themselves.

    Calibrated over six seeds: planted defects found, 30 of 30; false alarms on 47 healthy set-ups under six seeds,
    0 of 282.

    ## Why it hurts
    A saturated activation has slope near zero: what is behind it is learnt, what is before it is not. The layers near
    the input keep their initial weights, and the rest is trained on random features.

    ## Fix
    Unsafe, a change of architecture: a batch norm right before each activation named, with its parameters given to the
    optimizer. It keeps inputs where the slope is not zero (for tanh, 3.6 % of the outputs in the tails).
    """

    CODE = "NS127"
    SLUG = "vanishing-depth"
    SEVERITY = Severity.WARNING
    NEEDS = ("gradient",)
    KEEPS = ("evaluation",)  # until it has seen data, a new norm in eval mode is the identity
    SOURCES = ("arXiv:1502.03167 section 3.2", "Glorot and Bengio 2010")
    SICK = (
        examples.Planted(partial(_vectors, partial(_squashed, scale=8.0)), ["1", "3", "5", "7"]),
        examples.Planted(partial(_vectors, partial(_squashed, act=nn.Sigmoid, depth=8)), _odd(8)),
        examples.Planted(partial(examples.healthy, _SquashedMaps, trained=0, shape=(3, 8, 8)), ["act1", "act2"]),
        examples.Planted(partial(_vectors, partial(_squashed, act=nn.ReLU, depth=12, scale=0.3)), _odd(12)),
        examples.Planted(partial(_vectors, partial(_squashed, act=nn.ReLU, scale=0.05, bias=False, depth=6)), _odd(6)),
    )
    WELL = (
        partial(_vectors, _squashed),
        partial(_vectors, partial(_squashed, scale=8.0, norm=True)),
        partial(_vectors, _probability),
        partial(examples.healthy, examples.residual, trained=0),
        partial(examples.healthy, examples.residual, trained=0, change=_zero_gains),
    )
    NEAR = (
        examples.Near(_saturating, found=0.52, quiet=0.48),
        examples.Near(
            lambda factor: examples.deep_with_scaled_gradients(factor, 10, norm=False), found=0.3, quiet=0.34
        ),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Read saturation and gradients of the first step."""
        saturated = _saturated(evidence)
        ratio = _fading(evidence)
        if not saturated and ratio >= _RATIO:
            return
        bare, last = _activations(evidence)
        saturated = {site: share for site, share in saturated.items() if site not in last}
        if saturated:
            places = list(saturated)
            worst = max(saturated.values())
            message = (
                f"{counted(len(places), 'activation is', 'activations are')} saturated: up to {worst:.0%} of the "
                "outputs are near an end"
            )
            quantity, measured, bound = "share of outputs within 1.5 % of the range from an end", worst, _SATURATED
            if ratio < _RATIO:
                message += f"; gradients of the first layers are {ratio:.1e} times those of the last"
        elif ratio < _RATIO:
            places = [path for path in bare if path not in last] or [""]
            message = f"gradients of the first layers are {ratio:.1e} times those of the last"
            quantity, measured, bound = "gradient of the first layers over that of the last", ratio, _RATIO
        else:
            return
        yield self.finding(
            message,
            places,
            quantity=quantity,
            measured=measured,
            bound=bound,
            cost="layers near the input hardly learn",
            fix="normalize right before the activations, or start with weights of the right size",
            fixable=places != [""] and all(path in bare for path in places),
            details={"gradient_ratio": ratio},
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Put a batch norm before each activation of the finding."""
        modules = {path: module for path, module in case.model.named_modules() if path in finding.places}
        shapes: dict[str, Tensor] = {}

        def see(path: str, x: Tensor, _: Any) -> None:
            shapes.setdefault(path, x[:1])

        look(case, modules, 1, before=see)
        made = []
        for path, x in shapes.items():
            if x.ndim not in _NORMS:
                continue
            norm: Any = _NORMS[x.ndim](x.shape[1], device=x.device, dtype=x.dtype)
            replace_module(case.model, path, nn.Sequential(norm.train(modules[path].training), modules[path]))
            made.append(norm)
        if case.optimizer is not None and made:
            case.optimizer.add_param_group({"params": [p for norm in made for p in norm.parameters()]})
        return f"put a batch norm before {counted(len(made), 'activation')}"


def _saturated(evidence: Evidence) -> dict[str, float]:
    """Return the share of outputs near an end by activation, or by the layer before it where it is a function.

    A gate may be sure of itself: activations are left out by whose outputs other values are multiplied.
    """
    tails = evidence.training.values("saturation", "output_tail")
    tails = {site: share for site, share in tails.items() if share > _SATURATED}
    try:
        activations = list(evidence.wiring.activations.values())
    except NotShownError:
        return tails
    gates = {act.place for act in activations if act.is_gate}
    shares: dict[str, list[Activation]] = {}
    for act in activations:
        if not act.is_module and act.total and act.is_read:
            shares.setdefault(act.place, []).append(act)
    for place, acts in shares.items():
        share = sum(act.tails for act in acts) / sum(act.total for act in acts)
        if share > _SATURATED:
            tails[place] = share
    return {site: share for site, share in tails.items() if site not in gates}


def _fading(evidence: Evidence) -> float:
    """Return the gradient of the first layers over that of the last: the larger of two measures of it.

    Where outputs fade away from the input as gradients at them do toward it, gradients of weights show neither.
    """
    at_outputs = innermost(evidence.training.values("gradient_flow", "output_norm"))
    of_weights = evidence.training.values("gradient_flow", "norm")
    of_weights = {site: of_weights[site] for site in at_outputs if site in of_weights}
    ratio = max(_first_over_last(of_weights), _first_over_last(at_outputs))
    if ratio < _RATIO or _trend(at_outputs) >= _RATIO:
        return ratio
    try:
        sizes = evidence.wiring.sizes
    except NotShownError:
        return ratio
    outputs = _trend({site: 1 / size if size > 0 else math.inf for site, size in sizes.items()})
    return min(ratio, max(_trend(at_outputs), outputs))


def _trend(by_site: Mapping[str, float]) -> float:
    """Return the first value over the last but one, as the geometric mean of what lies between has it."""
    values = list(by_site.values())[:-1]
    if len(values) < 4 or not all(math.isfinite(value) and value > 0 for value in values):
        return 1.0
    centre = (len(values) - 1) / 2
    slope = sum((index - centre) * math.log(value) for index, value in enumerate(values))
    return math.exp(-slope / sum((index - centre) ** 2 for index in range(len(values))) * (len(values) - 1))


def _first_over_last(by_site: Mapping[str, float]) -> float:
    values = list(by_site.values())
    if len(values) < 5 or not all(map(math.isfinite, values)):
        return 1.0
    if values[0] > 0:  # what reaches the first layer has not vanished: branches with a gain of zero are no depth
        values = [value for value in values if value > 0]
    if len(values) < 5:
        return 1.0
    last = median_high(values[-4:-1])  # zero where the last layer starts at zero: nothing has vanished on the way
    return median_high(values[:3]) / last if last > 0 else 1.0


def _activations(evidence: Evidence) -> tuple[list[str], set[str]]:
    """Return the activations that no norm stands right before, and those whose output is the model's."""
    order: list[tuple[str, Tensor | None]] = []
    final: list[Any] = []
    leaves = childless(evidence.modules)
    watched = {"": evidence.case.model, **leaves}

    def see(path: str, output: Tensor, x: Any) -> None:
        if path:
            order.append((path, output))
        else:
            final.append(output)

    look(evidence.case, watched, 1, after=see)
    bare, before = [], ""
    for path, _ in order:
        if isinstance(leaves[path], _ACTIVATIONS) and not (before and is_known_norm(leaves[before])):
            bare.append(path)
        before = path
    ends = {tensor.data_ptr() for tensor in final if isinstance(tensor, torch.Tensor)}
    last = {path for path, tensor in order if tensor is not None and tensor.data_ptr() in ends}
    return list(dict.fromkeys(bare)), {path for path in last if isinstance(leaves[path], _ACTIVATIONS)}
