"""A model while an arm is made of it: what was seen of it, what was done, and how its function changed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normscope._errors import UsageError
from normscope.modules.batches import tensors
from normscope.modules.call import run, set_mode
from normscope.modules.state import traceless
from normscope.modules.wrapped import eagerly, is_compiled
from normscope.surgery._fast_paths import leave_fast_paths, without_fast_paths
from normscope.surgery._report import Change, Skip
from normscope.surgery._sites import Site, norm_sites
from normscope.surgery.arm_report import ArmReport
from normscope.surgery.foreign import Reading, is_plain, read
from normscope.surgery.functional import NAMES, FunctionalCall, functional_calls
from normscope.usercode import users_code

_ROUNDING = 1e-5  # of the outputs' length
_SAMPLES = 16  # of what a norm of another library is given, to find what it computes


@dataclass
class Work:
    """A model under surgery, what was seen of it, and what was done so far."""

    model: nn.Module
    example: Any
    seed: int
    groups: int
    sites: list[Site]
    readings: dict[nn.Module, Reading]
    eyes: "_Eyes"
    functional: list[FunctionalCall]
    activations: list[FunctionalCall]
    changes: list[Change] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    left: list[Skip] = field(default_factory=list)
    scaled: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def report(self, name: str) -> ArmReport:
        """Return what was done, with the distance of the outputs from those before."""
        relation = "equal" if not self.changes or name == "fixed-affine" else "different"
        difference = None
        if self.example is not None:
            with traceless(self.model), users_code(f"{name}: the changed model, called with the example,"):
                if self.eyes.evaluated:
                    set_mode(self.model, False)
                difference = _difference(self.eyes.outputs, _outputs(self.model, self.example))
            if difference is not None:
                relation = "equal" if difference < _ROUNDING else "different"
        if self.scaled:
            relation = "rescaled"
        order = {site.path: index for index, site in enumerate(self.sites)}
        return ArmReport(
            name,
            tuple(sorted(self.changes, key=lambda change: order.get(change.path, 0))),
            tuple(self.kept),
            tuple(self.left),
            tuple(self.functional),
            tuple(self.activations),
            relation,
            difference,
            self.scaled,
            tuple(self.notes),
        )

    def leave_fast_paths(self) -> None:
        """Have torch's encoder layers call the norms that were changed."""
        self.notes += leave_fast_paths(self.model, {change.path for change in self.changes})


class _Eyes:
    """What an example shows of a model and its norms."""

    def __init__(self) -> None:
        self.inputs: dict[nn.Module, Tensor] = {}
        self.ranks: dict[nn.Module, set[int]] = {}
        self.sizes: dict[nn.Module, int] = {}
        self.masked: set[nn.Module] = set()
        self.outputs: list[Tensor] = []
        self.evaluated = False

    def run(self, model: nn.Module, example: Any, norms: Iterable[nn.Module]) -> None:
        with traceless(model):
            for module in norms:
                module.register_forward_pre_hook(self._look, with_kwargs=True)
            try:
                self.outputs = _outputs(model, example)
                return
            except Exception:  # a batch of one sample, say, which batch norm refuses in training
                self.evaluated = True
            with users_code("the model, called with the example,"):
                set_mode(model, False)
                self.outputs = _outputs(model, example)

    def _look(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if given:
            self.ranks.setdefault(module, set()).add(given[0].ndim)
            size = given[0].numel() // max(len(given[0]), 1)
            self.sizes[module] = min(size, self.sizes.get(module, size))
            if module not in self.inputs and not is_plain(module):
                self.inputs[module] = given[0][:_SAMPLES].detach().clone()
        if len(given) > 1:
            self.masked.add(module)


def look_at(model: nn.Module, example: Any, seed: int, groups: int) -> Work:
    """Find the norms of a model, read those of other libraries, and call the model with the example if there is one.

    Raises:
        UsageError: The model raises with the example.
    """
    found, eyes = norm_sites(model), _Eyes()
    norms = {site.module: site.path for site in found}
    calls = functional_calls(model, None if example is None else lambda: eyes.run(model, example, norms))
    readings = {m: read(m, eyes.inputs.get(m)) for m in norms if not is_plain(m)}
    others = {m: reading.why for m, reading in readings.items() if not reading.is_norm}
    paths = [path for module, path in norms.items() if module not in others]
    outside = [call for call in calls if not any(f"{call.path}.".startswith(f"{path}.") for path in paths)]
    functional = [call for call in outside if call.function in NAMES]
    activations = [call for call in outside if call.function not in NAMES]
    sites = [site for site in found if site.module not in others]
    work = Work(model, example, seed, groups, sites, readings, eyes, functional, activations)
    work.notes += [f"{norms[module]}: {why}, so it is taken for none" for module, why in others.items()]
    return work


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    with without_fast_paths(), eagerly(is_compiled(model)):
        found = run(model, example)
    held = tensors(found) or tensors(getattr(found, "__dict__", ()))  # a data class, say
    return [tensor.detach().clone() for tensor in held if tensor.is_floating_point()]


def _difference(before: list[Tensor], after: list[Tensor]) -> float | None:
    if not before:
        return None
    if [t.shape for t in before] != [t.shape for t in after]:
        raise UsageError("the changed model gives outputs of other shapes")
    if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        return 0.0
    pairs = list(zip(before, after, strict=True))
    apart = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    length = sum(float(a.double().square().sum()) for a, _ in pairs)
    return float((apart / length) ** 0.5) if length else float("inf")
