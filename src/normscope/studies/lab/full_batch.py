"""Gradient descent on the whole training set, with the curvature along its own gradient."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from normscope._errors import NonFiniteError
from normscope.records import Cell, Record
from normscope.studies.lab.arms import one

Objective = Callable[[Tensor, Tensor], Tensor]


def descend(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    objective: Objective,
    *,
    cell: Cell,
    lr: float,
    steps: int,
    every: int,
    relative: Sequence[float] = (),
    absolute: Sequence[float] = (),
) -> Iterator[Record]:
    r"""Take steps of gradient descent, and read the loss's curvature along the gradient on the way.

    Records, probe ``descent``, every ``every`` steps at the parameters before the update, g being the gradient:

    - ``loss``; ``gradient``, its norm;
    - ``sharpness`` :math:`g^T H g / g^T g`, by a second backward pass, in train mode;
    - ``beta_relative`` :math:`\max_s \lVert\nabla L(\theta - s g) - g\rVert / (s \lVert g\rVert)` over
      ``relative`` times the learning rate, and ``beta_absolute``, the same over the step lengths ``absolute``.

    At the end ``diverged``: 0, or 1 at the step whose loss was not finite, where the run stops.

    Args:
        model: Trained in place. Buffers move with every pass; nothing here reads them.
        x: All inputs.
        targets: What the objective takes.
        objective: Loss of (outputs, targets).
        cell: Names the records.
        lr: Step length.
        steps: Number of steps.
        every: Steps between readings.
        relative: Step lengths of ``beta_relative`` in units of ``lr``; none leaves it out.
        absolute: Step lengths of ``beta_absolute``.

    Raises:
        NonFiniteError: The loss is not finite before the first update.
    """
    note = one(cell, "descent")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for step in range(steps + 1):
        due = step % every == 0
        loss = objective(model(x), targets)
        value = loss.item()
        if not math.isfinite(value):
            if step == 0:
                raise NonFiniteError("the loss is not finite before the first update: look for NaN in the data")
            yield note("diverged", 1.0, step)
            return
        gradient = torch.autograd.grad(loss, parameters, create_graph=due)
        flat = [part.detach() for part in gradient]
        if due:
            square = math.fsum(part.square().sum().item() for part in flat)
            along = torch.stack([(part * fixed).sum() for part, fixed in zip(gradient, flat, strict=True)]).sum()
            product = torch.autograd.grad(along, parameters)
            curved = math.fsum((part * fixed).sum().item() for part, fixed in zip(product, flat, strict=True))
            yield note("loss", value, step)
            yield note("gradient", math.sqrt(square), step)
            yield note("sharpness", curved / square if square else math.nan, step)
            for name, lengths in (("relative", [lr * factor for factor in relative]), ("absolute", list(absolute))):
                if lengths:
                    betas = [_beta(model, x, targets, objective, parameters, flat, s, square) for s in lengths]
                    finite = all(math.isfinite(beta) for beta in betas)
                    yield note(f"beta_{name}", max(betas) if finite else math.nan, step)
        if step < steps:
            with torch.no_grad():
                for parameter, part in zip(parameters, flat, strict=True):
                    parameter.sub_(part, alpha=lr)
    yield note("diverged", 0.0, steps)


def _beta(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    objective: Objective,
    parameters: Sequence[nn.Parameter],
    gradient: Sequence[Tensor],
    length: float,
    square: float,
) -> float:
    """Return how fast the gradient changes over a step of some length along it; the parameters are put back."""
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, part in zip(parameters, gradient, strict=True):
            parameter.sub_(part, alpha=length)
    there = torch.autograd.grad(objective(model(x), targets), parameters)
    with torch.no_grad():
        for parameter, saved in zip(parameters, before, strict=True):
            parameter.copy_(saved)
    change = math.fsum((new - old).square().sum().item() for new, old in zip(there, gradient, strict=True))
    return math.sqrt(change / square) / length if square else math.nan
