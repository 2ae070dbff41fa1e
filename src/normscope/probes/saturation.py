"""How much of a non-linearity's input lies where it hardly responds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Module

from normscope._errors import UsageError
from normscope.modules.channels import coprime_stride, ever_positive, in_memory_order, to_host
from normscope.modules.contents import Content, is_small
from normscope.modules.sites import Tree, chosen, sites_where
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes.remarks import Readings, Remark, Urgency, beyond, percent
from normscope.records import Record

_TANH_TAIL = math.atanh(0.97)
# Where the input and the output tail begin; a sigmoid is a tanh of half the input.
_TAILS: dict[type[Module], tuple[float, float]] = {nn.Tanh: (3.0, _TANH_TAIL), nn.Sigmoid: (6.0, 2 * _TANH_TAIL)}
_RECTIFIERS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
)
_KNOWN = (*_TAILS, *_RECTIFIERS)
_NAMED: dict[str, type[Module]] = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}
_DEAD = 0.05  # of the units: capacity that is lost
_IDLE = 0.9  # of the inputs; half is what a norm before a rectifier gives
_SATURATED = 0.25  # of the outputs; 4 % for standard normal inputs of tanh


class Saturation(AbstractProbe):
    r"""Tails of tanh and sigmoid, inactive and dead units of rectifiers, mean squared slope.

    ## Measures
    On the inputs $x$ of each activation $\varphi$ in the user's own pass. For all: ``squared_slope``,
    $E[\varphi'(x)^2]$, the share of the gradient's energy that passes.

    Tanh and sigmoid: ``input_tail``, the share of $|x| > 3$ (sigmoid: 6, as $\mathrm{sigmoid}(x) =
    (1 + \tanh(x/2))/2$), and ``output_tail``, the share of outputs within 1.5 % of their range from an end:
    $|\tanh x| > 0.97$, for the sigmoid below 0.015 or above 0.985. For standard normal x and tanh 0.27 %, 3.64 %
    and a squared slope of 0.464.

    ReLU and its relatives (leaky, parametric, ELU, GELU, SiLU, ...): ``inactive_share``, the share of $x \le 0$,
    $\Phi(-\beta/\gamma)$ after a norm with gain and shift over normal values; ``silent_share``, the share of
    units (channels) that are inactive on this whole batch; and ``dead_share``, the share inactive on all data so far.

    Shares are of all elements up to ``sample``, beyond that of every k-th in memory order, k having no factor in common
    with their number; ``silent_share`` and ``dead_share`` use every element. Calls of one activation are pooled, unit
    by unit; calls on another number of units are further units.

    **State**: for each activation, which units were ever active at a step that this probe read. A probe used for
    another model starts anew; with ``every`` above 1 the steps between readings are not counted.

    ## Cost
    A maximum by unit of a few samples of each activation's input, of all samples for units that these leave open, and a
    few operations on the subsample.

    ## Reads wrongly when
    The activation is a function in a container's ``forward``: it has no module to watch; name the module whose output
    it takes in ``sites``. Units are not on axis 1 (transformers: ``unit_axis=-1``). NaN counts as active.

    Args:
        sites: Qualified names of activations, all known ones if None; or a mapping from names of any modules to
            ``"tanh"``, ``"sigmoid"`` or ``"relu"``: then their outputs are read as inputs of that function.
        sample: Number of elements beyond which shares are taken from a subsample; None for no bound.
        unit_axis: Axis of the units in the input.
        every: Read at every so-many-th step; None takes the scope's schedule.

    Raises:
        UsageError: ``sample`` is below 2, or a named function is not known.
    """

    CODE = "saturation"
    SHOWS = "dead_share"
    QUESTION = "statistics"
    BY_DEFAULT = True
    NOTHING = "no non-linearity that is a module ran in this model; those called as functions cannot be heard"
    STREAMING = True
    SOURCES = (
        "Karpathy, makemore part 3 (criterion |tanh| > 0.97)",
        "Ioffe and Szegedy 2015, sections 1, 3.2 (arXiv:1502.03167)",
        "Yang et al. 2019 (arXiv:1902.08129): the mean squared slope in the growth of gradients",
    )

    def __init__(
        self,
        sites: Sequence[str] | Mapping[str, str] | None = None,
        *,
        sample: int | None = 16384,
        unit_axis: int = 1,
        every: int | None = None,
    ) -> None:
        super().__init__(every=every)
        if sample is not None and sample < 2:
            raise UsageError(f"{self.CODE}: sample={sample} must be 2 or more")
        functions = sites.values() if isinstance(sites, Mapping) else ()
        unknown = [function for function in functions if function not in _NAMED]
        if unknown:
            raise UsageError(f"{self.CODE}: no function {unknown[0]!r}; there are {', '.join(_NAMED)}")
        self.sites, self.sample, self.unit_axis = sites, sample, unit_axis
        self._alive: WeakKeyDictionary[Module, dict[int, np.ndarray]] = WeakKeyDictionary()

    def watch(self, step: Step) -> None:
        """Reduce the input of each activation before it is overwritten."""
        if isinstance(self.sites, Mapping):
            for site, module in chosen(step.model, tuple(self.sites)).items():
                function = _NAMED[self.sites[site]]()
                step.on_output(self, module, partial(self._take, step, site, module, function))
            return
        named = step.modules(_activations) if self.sites is None else chosen(step.model, self.sites)
        for site, module in named.items():
            if _is_activation(module):
                step.on_input(self, module, partial(self._take, step, site, module, module))
            elif self.sites is not None:
                raise UsageError(
                    f"{site!r} is a {type(module).__name__}, no known activation: give sites as a mapping to "
                    f"{', '.join(_NAMED)}"
                )

    def _take(self, step: Step, site: str, module: Module, function: Module, x: Tensor) -> None:
        if not x.numel():
            return
        calls = step.notes(self).setdefault(site, (module, []))[1]
        if type(function) is nn.ReLU and is_small(x) and x.ndim > 1 and not self._subsamples(x):
            calls.append(step.content(x))
            return
        tails = next((tails for kind, tails in _TAILS.items() if isinstance(function, kind)), None)
        calls.append(self._rectifier(function, x) if tails is None else self._tails(function, x, *tails))

    def _subsamples(self, x: Tensor) -> bool:
        return self.sample is not None and x.numel() > self.sample

    def _sampled(self, x: Tensor) -> Tensor:
        flat = in_memory_order(x)
        if self.sample is None or flat.numel() <= self.sample:
            return flat
        return flat[:: coprime_stride(flat.numel(), self.sample)]

    def _tails(self, function: Module, x: Tensor, far: float, saturated: float) -> list[Tensor]:
        x = self._sampled(x)
        x = x if x.dtype == torch.float64 else x.float()
        size = x.abs()
        y = torch.tanh(x) if isinstance(function, nn.Tanh) else torch.sigmoid(x)
        slope = 1 - y * y if isinstance(function, nn.Tanh) else y * (1 - y)
        counts = [torch.count_nonzero(size > far), torch.count_nonzero(size > saturated)]
        return [torch.stack([*(count.to(x.dtype) for count in counts), (slope * slope).sum(), x.new_tensor(x.numel())])]

    def _rectifier(self, function: Module, x: Tensor) -> list[Tensor]:
        active = ever_positive(x, self.unit_axis % x.ndim) if x.ndim > 1 else ~(x <= 0)
        values = self._sampled(x)
        inactive = torch.count_nonzero(values <= 0)
        if type(function) is nn.ReLU:
            slopes = values.numel() - inactive
        elif isinstance(function, nn.PReLU) and function.num_parameters > 1:
            values, slopes = x, (_slope(function, x) ** 2).sum()  # a slope a channel: no flat sample
            inactive = torch.count_nonzero(values <= 0)
        else:
            slopes = (_slope(function, values) ** 2).sum()
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        sums = torch.stack([inactive.to(wide), slopes.to(wide), torch.full_like(inactive, values.numel(), dtype=wide)])
        return [sums, active]

    def read(self, step: Step) -> Iterator[Record]:
        """Yield the shares of each activation, in the order of first use."""
        return self.records(step, self._values(step))

    def _values(self, step: Step) -> Iterator[tuple[str, str, float]]:
        notes: dict[str, tuple[Module, list[Any]]] = step.notes(self)
        if not notes:
            return
        step.settle()
        every = [call for _, calls in notes.values() for call in calls]
        small = iter(self._of_small([call for call in every if isinstance(call, Content)]))
        host = iter([next(small) if isinstance(call, Content) else to_host(call) for call in every])
        for site, (module, calls) in notes.items():
            found = [next(host) for _ in calls]
            *counts, size = found[0][0] if len(found) == 1 else np.sum([call[0] for call in found], axis=0)
            names = (
                ("input_tail", "output_tail", "squared_slope")
                if len(counts) == 3
                else ("inactive_share", "squared_slope")
            )
            for name, count in zip(names, counts, strict=True):
                yield site, name, count / size
            if len(found[0]) > 1:
                silent, dead = self._never_active(module, [call[1] != 0 for call in found])
                yield site, "silent_share", silent
                yield site, "dead_share", dead

    def _never_active(self, module: Module, calls: Sequence[np.ndarray]) -> tuple[float, float]:
        """Return the shares of units that were active in no call of this step, and at no step so far."""
        alive = self._alive.setdefault(module, {})
        active: dict[int, np.ndarray] = {}
        for units in calls:
            active[units.size] = units | active[units.size] if units.size in active else units
        for width, units in active.items():
            alive[width] = units | alive[width] if width in alive else units
        size = sum(active)
        return (
            1 - sum(np.count_nonzero(units) for units in active.values()) / size,
            1 - sum(np.count_nonzero(alive[width]) for width in active) / size,
        )

    def _of_small(self, contents: Sequence[Content]) -> list[tuple[Any, np.ndarray]]:
        """Return what ``_rectifier`` does, of the inputs of plain rectifiers."""
        found: list[Any] = [None] * len(contents)
        alike: dict[tuple[int, ...], list[int]] = {}
        arrays = [content.copy.array for content in contents if content.copy is not None]
        for index, array in enumerate(arrays):
            alike.setdefault(array.shape, []).append(index)
        for shape, indices in alike.items():
            axis = self.unit_axis % len(shape)
            with np.errstate(invalid="ignore"):
                active = ~(np.array([arrays[index] for index in indices]) <= 0)
            others = tuple(other + 1 for other in range(len(shape)) if other != axis)
            units = np.logical_or.reduce(active, axis=others)
            size = active[0].size
            for index, each, unit in zip(indices, active, units, strict=True):
                count = np.count_nonzero(each)
                found[index] = (size - count, count, size), unit
        return found

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of dead units, of inputs that hardly ever pass, and of tails."""
        if dead := beyond(readings, "dead_share", above=_DEAD):
            yield dead.remark(
                "{value} of the units of {site} are never active{since}",
                "in {where} units are never active, most in {site}: {value} of them{since}",
                percent,
                Urgency.COSTLY,
                "activation",
            )
        if idle := beyond(readings, "inactive_share", above=_IDLE):
            yield idle.remark(
                "{value} of the inputs of {site} are not positive{since}: it passes little on",
                "few inputs pass {where}, fewest {site}: {value} are not positive{since}",
                percent,
                Urgency.NOTABLE,
                "activation",
            )
        if tail := beyond(readings, "output_tail", above=_SATURATED):
            yield tail.remark(
                "{site} is saturated: {value} of its outputs lie at an end of their range{since}",
                "{where} are saturated, most {site}: {value} of its outputs lie at an end of their range{since}",
                percent,
                Urgency.COSTLY,
                "activation",
            )


def _is_activation(module: Module) -> bool:
    return isinstance(module, _KNOWN)


def _activations(model: Module, tree: Tree) -> dict[str, Module]:
    return sites_where(model, _is_activation, tree)


def _slope(function: Module, x: Tensor) -> Tensor:
    """Return the derivative at each element; the module's own hooks are passed by, in-place or not."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        y = type(function).forward(function, leaf * 1)
        return torch.autograd.grad(y.sum(), leaf)[0]
