"""What holds of weights in front of a norm: their gradient, curvature and growth, and where weight decay holds them."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normscope.records import Cell, Record
from normscope.studies.lab.arms import batch_norm, network, recorder
from normscope.studies.lab.data import Dataset, Split
from normscope.studies.lab.labels import with_wrong_labels
from normscope.studies.lab.train import batch_indices

SCALES = (0.1, 0.3, 1.0, 3.0, 10.0)


def _hidden(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if "linear.weight" in name]


def identities(cell: Cell, data: Dataset, split: Split, device: str) -> Iterator[Record]:
    """Yield, in float64, the cosine of weights and gradients, slopes over the weights' scale, and their growth."""
    record = recorder(cell, "scale")
    model = network(cell, data, batch_norm(eps=1e-30, dtype=torch.float64), device).double()
    x, y = split.x_train[:256].double(), split.y_train[:256]
    weights = _hidden(model)

    def gradients(create: bool = False) -> list[Tensor]:
        return list(torch.autograd.grad(cross_entropy(model(x), y), weights, create_graph=create))

    def cosine() -> float:
        return max(
            float(torch.cosine_similarity(w.detach().flatten(1), g.flatten(1), dim=1).abs().nan_to_num().max())
            for w, g in zip(weights, gradients(), strict=True)
        )

    worst = cosine()
    start = [w.detach().clone() for w in weights]
    stream = torch.Generator().manual_seed(cell.seed)
    along = [torch.randn(w.shape, generator=stream, dtype=torch.float64) for w in weights]
    norms, curvatures = [], []
    for scale in SCALES:
        with torch.no_grad():
            for w, at in zip(weights, start, strict=True):
                w.copy_(scale * at)
        found = gradients(create=True)
        norms.append(math.sqrt(sum(float(g.detach().square().sum()) for g in found)))
        product = torch.autograd.grad(found, weights, along)
        curvatures.append(abs(sum(float((p * v).sum()) for p, v in zip(product, along, strict=True))))
        yield record("gradient_at", norms[-1], step=round(100 * scale))
    logs = np.log(SCALES)
    yield record("gradient_slope", np.polyfit(logs, np.log(norms), 1)[0])
    yield record("curvature_slope", np.polyfit(logs, np.log(curvatures), 1)[0])
    with torch.no_grad():
        for w, at in zip(weights, start, strict=True):
            w.copy_(at)
    steps = 0.0
    rate = float(cell.settings["lr"])
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for part in batch_indices(len(split.y_train), int(cell.settings["batch"]), int(cell.settings["steps"]), cell.seed):
        optimizer.zero_grad()
        cross_entropy(model(split.x_train[part].double()), split.y_train[part]).backward()
        steps += sum(float((rate * w.grad).square().sum()) for w in weights if w.grad is not None)
        optimizer.step()
    grown = sum(float(w.detach().square().sum() - at.square().sum()) for w, at in zip(weights, start, strict=True))
    yield record("pythagoras", grown / steps)
    yield record("cosine", max(worst, cosine()))


def equilibrium(cell: Cell, data: Dataset, split: Split, device: str) -> Iterator[Record]:
    """Train with weight decay for several relaxation times; then hold rotation and norm against theory."""
    record = recorder(cell, "scale")
    if cell.arm != "decay":
        # Theory is for gradients of one size; those of a network that has learnt its examples die away.
        split = with_wrong_labels(split, float(cell.settings["decayed_noise"]), cell.seed)
    model = network(cell, data, batch_norm(), device, **cell.settings["decayed_network"])
    weights, rate, decay = _hidden(model), float(cell.settings["lr"]), float(cell.settings["decay"])
    rest = [p for p in model.parameters() if all(p is not w for w in weights)]
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": decay}, {"params": rest}]
    optimizer = torch.optim.SGD(groups, lr=rate)
    angles, ratios, steps = [], [], int(cell.settings["decayed_steps"])
    stream = torch.Generator().manual_seed(cell.seed)
    for index in range(steps):
        picked = torch.randint(len(split.y_train), (int(cell.settings["batch"]),), generator=stream)
        optimizer.zero_grad()
        cross_entropy(model(split.x_train[picked]), split.y_train[picked]).backward()
        late = index >= steps * 2 // 3
        before = [w.detach().clone() for w in weights] if late else []
        if late:
            for w in weights:
                assert w.grad is not None
                length = float(w.detach().norm())
                unit = float(w.grad.norm()) ** 2 * length**2  # squared gradient at unit norm
                ratios.append((length, unit))
        optimizer.step()
        for w, was in zip(weights, before, strict=False):
            angles.append(float(torch.cosine_similarity(w.detach().flatten(), was.flatten(), dim=0)))
    per_layer = len(weights)
    lengths = np.array(ratios).reshape(-1, per_layer, 2)
    # Rotation: the root mean square angle; the law is for its square.
    squares = 2 * (1 - np.array(angles))
    rotation = math.sqrt(float(np.mean(squares)))
    predicted = (rate * lengths[:, :, 1].mean(0) / (2 * decay)) ** 0.25
    fourth = (lengths[:, :, 0] ** 4).mean(0) ** 0.25
    yield record("rotation_angle", rotation)
    yield record("rotation", rotation / math.sqrt(2 * rate * decay))
    yield record("equilibrium", float(np.mean(fourth / predicted)))
