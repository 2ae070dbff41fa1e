"""Second models beside the one that trains: averages of it, targets, teachers; and what their statistics cost."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import Module

from normscope.evidence.case import Case
from normscope.evidence.losses import losses
from normscope.evidence.noise import noisy_modules, quiet_call
from normscope.evidence.sandbox import sandbox
from normscope.modules.call import set_mode
from normscope.modules.sites import tracking
from normscope.surgery import recalibrate

Shape = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Companion:
    """A module with the parameters of a model, or of a part of it, by names and shapes.

    Attributes:
        name: How it is reached, as ``step.agent.target``; its path, where it lies in the model itself.
        part: Path of the part of the model that it is like; empty for the whole model.
        module: The companion.
    """

    name: str
    part: str
    module: Module


@dataclass(frozen=True, slots=True)
class Gain:
    """What a model gains by statistics taken anew.

    Attributes:
        own: Losses in eval mode of some batches of training with its own running statistics.
        anew: Those of the same batches with the statistics of the training data.
        shift: By path of a norm the largest distance of a running mean from that of the data, in deviations.
        BOUND: How many times as high a loss is that is a defect: where running statistics follow weights that move,
            they always lag a little.
        ERRORS: By how many standard errors over batches it has to be higher.
    """

    BOUND: ClassVar[float] = 1.2
    ERRORS: ClassVar[float] = 3.0

    own: Sequence[float]
    anew: Sequence[float]
    shift: Mapping[str, float]

    @property
    def loss(self) -> float:
        """By how much its own statistics raise the loss."""
        return math.fsum(self._rises) / len(self._rises)

    @property
    def error(self) -> float:
        """The standard error of ``loss`` over batches; infinite where there is one batch."""
        count = len(self._rises)
        if count < 2:
            return math.inf
        return math.sqrt(math.fsum((rise - self.loss) ** 2 for rise in self._rises) / (count - 1) / count)

    @property
    def excess(self) -> float:
        """How many times as high the loss is: one and ``loss`` over the size of the loss with statistics anew."""
        return 1 + self.loss / max(abs(math.fsum(self.anew) / len(self.anew)), 1e-12)

    @property
    def is_large(self) -> bool:
        """Whether its own statistics cost more than a lag does, and more than noise over batches."""
        return self.excess > self.BOUND and self.loss > self.ERRORS * self.error

    @property
    def matters(self) -> bool:
        """Whether its own statistics cost 1 % of the loss or more, and more than noise over batches."""
        noise = 0.0 if len(self._rises) < 2 else self.ERRORS * self.error
        return self.excess > 1.01 and self.loss > noise

    @property
    def _rises(self) -> list[float]:
        return [own - anew for own, anew in zip(self.own, self.anew, strict=True)]


def outer_modules(model: Module, objects: Iterable[tuple[str, Any]]) -> dict[str, Module]:
    """Return the modules outside of a model that lie in no other one, by name.

    Args:
        model: The model.
        objects: What may be a module, by name, each after what holds it.
    """
    inside = set(model.modules())
    found: dict[str, Module] = {}
    for name, each in objects:
        if isinstance(each, Module) and each not in inside and not inside & set(each.modules()):
            inside |= set(each.modules())
            found[name] = each
    return found


def find_companions(model: Module, outside: Mapping[str, Module], trained: set[int]) -> list[Companion]:
    """Find modules that are built as a model is, or as a part of it that has batch norms, and are not trained.

    Args:
        model: The model.
        outside: Modules outside of it, by name.
        trained: The ``id`` of every parameter that an optimizer updates.
    """
    parts: dict[Shape, list[tuple[str, Module]]] = {}
    for path, module in model.named_modules():
        if tracking(module) and next(module.children(), None) is not None and _learns(module, trained):
            parts.setdefault(_shape(module), []).append((path, module))
    own = [(path, module) for path, module in model.named_modules() if path]
    candidates = [*modules_in(outside), *own]
    found, taken = [], set[Module]()
    for name, module in candidates:
        if module in taken or _learns(module, trained) or not any(True for _ in module.parameters()):
            continue
        alike = [(path, part) for path, part in parts.get(_shape(module), ()) if part is not module]
        if alike:
            taken.update(module.modules())
            found.append(Companion(name, min(alike, key=lambda each: _distance(module, each[1]))[0], module))
    return found


def is_copy(companion: Companion, model: Module) -> bool:
    """Whether a companion has the very parameters of its part of the model."""
    part = dict(model.get_submodule(companion.part).named_parameters())
    return all(torch.equal(value, part[name]) for name, value in companion.module.named_parameters())


def gain_of(case: Case, companion: Companion, count: int) -> Gain:
    """Measure what a companion gains by statistics taken anew from the training data, in the place of its part.

    Its values are put into the part of the model that it is like, so that the loss can be had as that of the model.
    Where the loss reads the companion too, that has the same statistics.

    Args:
        case: The set-up; left as it was.
        companion: The companion.
        count: Over how many batches.

    Raises:
        UsageError: The loader or the loss raises.
    """
    with sandbox(case):
        part = case.model.get_submodule(companion.part)
        put_values(companion.module, part)
        prefix = f"{companion.part}." if companion.part else ""
        gain = gain_by_recalibration(case, case.model, count, prefix=prefix, reader=companion.module)
    return gain


def recalibrate_companion(case: Case, companion: Companion) -> int:
    """Take a companion's running statistics anew from the training data, in the place of its part; return how many."""
    with sandbox(case):
        part = case.model.get_submodule(companion.part)
        put_values(companion.module, part)
        prefix = f"{companion.part}." if companion.part else ""
        only = [prefix + path for path in tracking(part)]
        call = quiet_call(case, noisy_modules(case))
        done = recalibrate(case.model, case.loader, call, only=only, frozen=True).done
        taken = {name: buffer.clone() for name, buffer in part.named_buffers()}
    with torch.no_grad():
        for name, buffer in _statistics_of(companion.module):
            buffer.copy_(taken[name])
    return len(done)


def gain_by_recalibration(
    case: Case, model: Module, count: int, *, prefix: str = "", reader: Module | None = None
) -> Gain:
    """Take the losses of a model in eval mode before and after a recalibration, inside a sandbox.

    Args:
        case: The set-up.
        model: The model.
        count: Over how many batches.
        prefix: Path of the part of it that is recalibrated, with a dot.
        reader: A module that is to have the statistics of that part too.

    Raises:
        UsageError: The loader or the loss raises.
    """
    call = quiet_call(case, noisy_modules(case)) if model is case.model else case.eval_loss_fn or case.loss_fn

    def taken() -> list[float]:
        set_mode(model, False)
        return losses(case, case.loader, count, model=model, evaluation=True, what="loader")

    own = taken()
    only = [path for path in tracking(model) if path.startswith(prefix)]
    report = recalibrate(model, case.loader, call, num_batches=count, only=only, frozen=True)
    if reader is not None:
        put_values(model.get_submodule(prefix.rstrip(".")), reader)
    shift = {change.path.removeprefix(prefix): change.numbers["mean_shift"] for change in report.done}
    return Gain(own, taken(), shift)


@torch.no_grad()
def put_values(source: Module, target: Module) -> None:
    """Copy parameters and buffers by their names."""
    values = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    for name, tensor in (*target.named_parameters(), *target.named_buffers()):
        if name in values and values[name].shape == tensor.shape:
            tensor.copy_(values[name])


def _statistics_of(module: Module) -> Iterator[tuple[str, torch.Tensor]]:
    for path, norm in tracking(module).items():
        for name, buffer in norm.named_buffers(recurse=False):
            yield (f"{path}.{name}" if path else name), buffer


def modules_in(outside: Mapping[str, Module]) -> Iterator[tuple[str, Module]]:
    """Return every module that is or lies in one of several, by name."""
    for name, module in outside.items():
        for path, inner in module.named_modules():
            yield f"{name}.{path}" if path else name, inner


def _learns(module: Module, trained: set[int]) -> bool:
    return any(id(parameter) in trained for parameter in module.parameters())


def _shape(module: Module) -> Shape:
    parameters = ((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())
    statistics = ((f"{path}.running_mean", tuple(norm.running_mean.shape)) for path, norm in tracking(module).items())
    return (*parameters, *statistics)


def _distance(a: Module, b: Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return math.fsum(float((p.detach().double() - q.detach().double()).square().sum()) for p, q in pairs)
