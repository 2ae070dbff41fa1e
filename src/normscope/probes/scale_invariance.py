"""What a weight's length means in front of a norm."""

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD

from normscope._errors import UsageError
from normscope.modules.batches import leading_tensor
from normscope.modules.channels import to_floats, to_host, unit_products
from normscope.modules.shards import any_distributed
from normscope.modules.sites import chosen, norms, weight_layers, weights
from normscope.probes._backward_end import Gradients, UncountedChanges
from normscope.probes._norms import norm_of
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes.remarks import (
    Readings,
    Remark,
    Theory,
    Urgency,
    amount,
    beyond,
    called,
    counted,
    decades,
    sentence,
)
from normscope.records import Record

_CHANGED = 3.0  # a factor over training
_SPIN = 0.2  # radians a step: a dozen degrees
_BOUND = 0.1  # cosine of weight and gradient; 0 but for epsilon

_Owner = tuple[dict[str, Any], Any]
"""A parameter group, and its optimizer."""


class ScaleInvariance(AbstractProbe):
    r"""Radial gradient, effective learning rate, rotation and norm equilibrium of normalized weights.

    ## Measures
    For each weight $w$ whose layer's output goes straight into a norm, with $g$ its gradient as the
    backward pass ends, before clipping and without loss scale, $\eta$ and $\lambda$ the learning rate and
    weight decay of its parameter group and $\Delta w$ the change it really got. If the loss does not depend on
    the length of w:

    - ``radial_cosine``: $\langle w, g\rangle / (\lVert w\rVert \lVert g\rVert)$, 0 but for $\epsilon$;
      and before batch or instance norm ``unit_radial_cosine``, the largest size of the same over output units;
    - ``weight_norm`` $\lVert w\rVert$ and ``effective_lr``: $\eta/\lVert w\rVert^2$;
    - ``angle``: the angle in radians between w before and after the update;
    - ``norm_growth``: $(\lVert w + \Delta w\rVert^2 - \lVert w\rVert^2) / \lVert \Delta w\rVert^2$, 1 where the
      update is orthogonal to the weight (Pythagoras: plain SGD), less with weight decay, any value with momentum;
    - with plain SGD (momentum $\alpha$, no Nesterov) and $\lambda > 0$, ``equilibrium_ratio``:
      $\lVert w\rVert / (\eta \hat G / (2\lambda(1-\alpha)))^{1/4}$ with $\hat G = \lVert g\rVert^2
      \lVert w\rVert^2$ of the gradient that the optimizer was handed, after clipping; and ``angle_ratio``: the angle
      over $\sqrt{2\eta\lambda/(1+\alpha)}$; both tend to 1.

    ## Cost
    A copy of the weights, shared with other probes, and a few reductions of their size; none of activations.

    ## Reads wrongly when
    Layer and norm are joined by something else than a call: a functional norm, a view between. Name such layers in
    ``sites``; any layer may be named, also to see that its weight is not invariant. After a norm in eval mode the
    cosine is not 0. $\hat G$ is of one step: average the ratio over steps. The equilibrium holds for small
    $\eta\lambda$, after more than $1/(4\eta\lambda)$ steps at a constant learning rate.

    Args:
        sites: Qualified names of layers; the layers whose output is the input of a norm if None.
        every: Read at every so-many-th step; None takes the scope's schedule.
    """

    CODE = "scale_invariance"
    SHOWS = "effective_lr"
    QUESTION = "sharpness"
    NOTHING = "no layer whose weight only scales what a norm reads was found in this model"
    STREAMING = True
    SOURCES = (
        "Arora, Li and Lyu 2018, lemma 2.4 (arXiv:1812.03981)",
        "van Laarhoven 2017, L2 Regularization versus Batch and Weight Normalization (arXiv:1706.05350)",
        "Wan et al. 2020, Spherical Motion Dynamics (arXiv:2006.08419): the equilibrium with momentum",
    )

    def __init__(self, sites: Sequence[str] | None = None, *, every: int | None = None) -> None:
        super().__init__(every=every)
        self.sites = None if sites is None else tuple(sites)
        self._uncounted = UncountedChanges()

    def watch(self, step: Step) -> None:
        """Keep the weights, and note whose output is the input of a norm."""
        layers = step.modules(weight_layers) if self.sites is None else chosen(step.model, self.sites)
        owned = {site: [p for p in weights(module) if p.requires_grad][:1] for site, module in layers.items()}
        notes = step.notes(self)
        notes["weights"] = {site: own[0] for site, own in owned.items() if own}
        if any_distributed(notes["weights"].values()):
            raise UsageError(f"{self.CODE} reads whole weights, and here each process holds a part of them")
        notes["norms"], notes["found"], notes["at_update"] = {}, {}, {}
        thorough = self._uncounted.possible(step.model)
        notes["gradients"] = gradients = Gradients(notes["weights"].values(), thorough=thorough)
        step.on_backward_end(self, notes["weights"].values(), lambda: self._look(step, gradients.after_backward()))
        step.keep_values(notes["weights"].values())
        made: dict[int, tuple[weakref.ref[Tensor], int, str]] = {}
        for site in notes["weights"]:
            step.on_module(self, layers[site], _note_made(made, site))
        for norm in step.modules(norms).values():
            step.on_module(self, norm, _note_taken(made, notes["norms"]), before=True)

    def before_update(self, step: Step, parameters: Mapping[int, Parameter]) -> None:
        """Read the gradients that no backward pass has shown, and the length of those that were changed since."""
        unread, changed = step.notes(self)["gradients"].before_update(parameters)
        self._look(step, unread)
        self._note_lengths(step, changed)

    def _note_lengths(self, step: Step, changed: Sequence[Parameter]) -> None:
        for weight in changed:
            step.notes(self)["at_update"][id(weight)] = norm_of(_gradient(step, weight))

    def _look(self, step: Step, found: Sequence[Parameter]) -> None:
        products: dict[int, Any] = step.notes(self)["found"]
        for weight in found:
            products[id(weight)] = unit_products(step.value_before(weight), _gradient(step, weight))

    def read(self, step: Step) -> Iterator[Record]:
        """Yield the quantities of each weight before a norm."""
        return self.records(step, self._values(step), {"angle": "rad"})

    def _values(self, step: Step) -> Iterator[tuple[str, str, float]]:
        notes = step.notes(self)
        products: dict[int, Any] = notes["found"]
        after: dict[str, Module] = notes["norms"]
        unread, changed = notes["gradients"].at_end()
        self._look(step, [weight for weight in unread if id(weight) not in products])
        if step.optimizers:
            self._note_lengths(step, changed)
        layers: dict[str, Parameter] = {
            site: weight
            for site, weight in notes["weights"].items()
            if (self.sites is not None or site in after) and id(weight) in products
        }
        if not layers:
            return
        at_update: dict[int, Tensor] = notes["at_update"]
        handed = dict(zip(at_update, to_floats(list(at_update.values())), strict=True))
        owners = _owners(step)
        sums = _sums([products[id(weight)] for weight in layers.values()])
        squares = {id(weight): row[2] for weight, row in zip(layers.values(), sums, strict=True)}
        apart = {
            key: not math.isclose(handed[key] ** 2, squares[key], rel_tol=1e-4)
            for key in notes["gradients"].uncounted & squares.keys()
        }
        self._uncounted.note(step.model, apart.values())
        handed = {key: length for key, length in handed.items() if apart.get(key, True)}
        changes = step.changes(list(layers.values()))
        for (site, weight), (inner, w2, g2, unit), change in zip(layers.items(), sums, changes, strict=True):
            yield site, "radial_cosine", _ratio(inner, math.sqrt(w2 * g2))
            if isinstance(after.get(site), _NormBase):
                yield site, "unit_radial_cosine", unit
            yield site, "weight_norm", math.sqrt(w2)
            at_update2 = handed.get(id(weight), 0.0) ** 2
            owner = owners.get(id(weight), ({}, None))
            yield from self._dynamics(step, site, owner, w2, at_update2 or g2, change[0], change[1])

    def _dynamics(
        self, step: Step, site: str, owner: _Owner, w2: float, g2: float, moved2: float, moved_inner: float
    ) -> Iterator[tuple[str, str, float]]:
        group, optimizer = owner
        lr = float(group["lr"]) if group else None
        if lr is not None:
            yield site, "effective_lr", _ratio(lr, w2)
        if moved2 == 0:
            return
        # The part of the move across the weight, over the part along it: exact for small angles.
        across = math.sqrt(max(moved2 * w2 - moved_inner**2, 0.0)) if math.isfinite(moved2) else math.nan
        angle = math.atan2(across, w2 + moved_inner)
        yield site, "angle", angle
        yield site, "norm_growth", 1 + 2 * moved_inner / moved2
        decay = float(group.get("weight_decay", 0)) if group else 0.0
        if lr and decay > 0 and type(optimizer) is SGD and not group["nesterov"] and not group["dampening"]:
            momentum = float(group["momentum"])
            fourth = lr * g2 * w2 / (2 * decay * (1 - momentum))
            yield site, "equilibrium_ratio", _ratio(w2, math.sqrt(fourth)) ** 0.5
            yield site, "angle_ratio", angle / math.sqrt(2 * lr * decay / (1 + momentum))

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of effective learning rates that changed, of weights that spin, of weights that are not invariant."""
        first, late = readings.first("effective_lr"), readings.late("effective_lr")
        ratios = {site: decades(late[site], first[site]) for site in late}
        far = sorted((s for s in ratios if abs(ratios[s]) > decades(_CHANGED, 1)), key=lambda s: -abs(ratios[s]))
        if far:
            most, others = far[0], len(far) - 1
            says = (
                f"The effective learning rate of {called(most)} has {'risen' if ratios[most] > 0 else 'fallen'} "
                f"from {amount(first[most])} to {amount(late[most])}"
                + (f"; beyond {_CHANGED:g} times it changed in {counted(others, 'other layer')} too" if others else "")
            )
            yield Remark(sentence(says), Urgency.NOTABLE, abs(ratios[most]) / 2, tuple(far), "effective_lr")
        if spun := beyond(readings, "angle", above=_SPIN):
            yield spun.remark(
                "the weight of {site} turns by {value} radians a step{since}",
                "the weights of {where} turn fast, most of {site}: by {value} radians a step{since}",
                amount,
                Urgency.COSTLY,
                "layer",
            )
        if bound := beyond(readings, "radial_cosine", above=_BOUND, size=True):
            yield bound.remark(
                "the loss depends on the length of the weight of {site}, though a norm follows: cosine with the "
                "gradient {value}",
                "the loss depends on the length of the weight in {where}, though norms follow, most in {site}: cosine "
                "with the gradient {value}",
                amount,
                Urgency.NOTABLE,
                "layer",
            )

    @classmethod
    def theory(cls, readings: Readings) -> Theory:
        """Draw the orthogonal update and the equilibria."""
        return {
            "norm_growth": ("orthogonal update", 1.0),
            "equilibrium_ratio": ("equilibrium", 1.0),
            "angle_ratio": ("equilibrium", 1.0),
        }


def _gradient(step: Step, weight: Parameter) -> Tensor:
    gradient = step.gradient(weight)
    assert gradient is not None
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def _note_made(made: dict[int, tuple[weakref.ref[Tensor], int, str]], site: str) -> Any:
    def hook(_module: Module, _inputs: Any, output: Any) -> None:
        tensor = leading_tensor(output)
        if tensor is not None and torch.is_grad_enabled():
            made[id(tensor)] = (weakref.ref(tensor), tensor._version, site)

    return hook


def _note_taken(made: dict[int, tuple[weakref.ref[Tensor], int, str]], norms: dict[str, Module]) -> Any:
    def hook(module: Module, inputs: Any) -> None:
        tensor = leading_tensor(inputs)
        known = made.get(id(tensor))
        if tensor is not None and known is not None and known[0]() is tensor and tensor._version == known[1]:
            norms[known[2]] = module

    return hook


def _sums(products: Sequence[Any]) -> list[list[float]]:
    """Return of each weight the sums of ``unit_products`` over its units, and the largest cosine of a unit."""
    away = iter(to_host([rows for rows in products if isinstance(rows, Tensor)]))
    host = [next(away) if isinstance(rows, Tensor) else rows for rows in products]
    starts = [0, *accumulate(rows.shape[1] for rows in host[:-1])]
    by_unit = np.concatenate(host, axis=1, dtype=np.float64)
    with np.errstate(all="ignore"):
        # A unit without gradient has none along its weight either.
        lengths = np.maximum(np.sqrt(by_unit[1] * by_unit[2]), np.finfo(np.float64).tiny)
        largest = np.maximum.reduceat(abs(by_unit[0]) / lengths, starts)
        return np.concatenate([np.add.reduceat(by_unit, starts, axis=1), largest[None]]).T.tolist()


def _owners(step: Step) -> dict[int, _Owner]:
    """Return the parameter group and the optimizer of each parameter, by ``id``."""
    return {
        id(parameter): (group, optimizer)
        for optimizer in reversed(step.optimizers)
        for group in reversed(optimizer.param_groups)
        for parameter in group["params"]
    }


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan
