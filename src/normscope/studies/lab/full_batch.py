"""Gradient descent on the whole training set, with the curvature along its own gradient."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from normscope._errors import NonFiniteError
from normscope.records import Cell, Record
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.by_hand import Objective, gradient_by_hand


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
    - ``sharpness`` $g^T H g / g^T g$, by a second backward pass, in train mode;
    - ``beta_relative`` $\max_s \lVert\nabla L(\theta - s g) - g\rVert / (s \lVert g\rVert)$ over
      ``relative`` times the learning rate, and ``beta_absolute``, the same over the step lengths ``absolute``.

    At the end ``diverged``: 0, or 1 at the step whose loss was not finite, where the run stops.

    Args:
        model: Trained in place. Buffers may move with a pass; nothing here reads them.
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
    record = recorder(cell, "descent")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    by_hand = gradient_by_hand(model, x, targets, objective)

    def gradient_here() -> tuple[Tensor, Sequence[Tensor]]:
        if by_hand is not None:
            return by_hand()
        loss = objective(model(x), targets)
        return loss.detach(), torch.autograd.grad(loss, parameters)

    for step in range(steps + 1):
        due = step % every == 0
        if due:  # with the graph, to differentiate once more
            loss = objective(model(x), targets)
        else:
            loss, flat = gradient_here()
        value = loss.item()
        if not math.isfinite(value):
            if step == 0:
                raise NonFiniteError("the loss is not finite before the first update: look for NaN in the data")
            yield record("diverged", 1.0, step)
            return
        if due:
            gradient = torch.autograd.grad(loss, parameters, create_graph=True)
            flat = [part.detach() for part in gradient]
            square = math.fsum(part.square().sum().item() for part in flat)
            along = torch.stack([(part * fixed).sum() for part, fixed in zip(gradient, flat, strict=True)]).sum()
            product = torch.autograd.grad(along, parameters)
            curved = math.fsum((part * fixed).sum().item() for part, fixed in zip(product, flat, strict=True))
            yield record("loss", value, step)
            yield record("gradient", math.sqrt(square), step)
            yield record("sharpness", curved / square if square else math.nan, step)
            asked = {"relative": [lr * factor for factor in relative], "absolute": list(absolute)}
            # At some learning rates both have the same lengths.
            found = {s: _beta(gradient_here, parameters, flat, s, square) for s in {*asked["relative"], *absolute}}
            for name, lengths in asked.items():
                if lengths:
                    betas = [found[s] for s in lengths]
                    finite = all(math.isfinite(beta) for beta in betas)
                    yield record(f"beta_{name}", max(betas) if finite else math.nan, step)
        if step < steps:
            with torch.no_grad():
                for parameter, part in zip(parameters, flat, strict=True):
                    parameter.sub_(part, alpha=lr)
    yield record("diverged", 0.0, steps)


def _beta(
    gradient_here: Callable[[], tuple[Tensor, Sequence[Tensor]]],
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
    _, there = gradient_here()
    with torch.no_grad():
        for parameter, saved in zip(parameters, before, strict=True):
            parameter.copy_(saved)
    change = math.fsum((new - old).square().sum().item() for new, old in zip(there, gradient, strict=True))
    return math.sqrt(change / square) / length if square else math.nan
