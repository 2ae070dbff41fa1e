"""Networks, batches and plain twins that the tests of this room share."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.modules.rng import RngState
from normscope.modules.values import same_bits
from normscope.probes import Scope


class Shared(nn.Module):
    """A recurrent layer, and a linear layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(12, 8)
        self.shared = nn.Linear(8, 8)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.outlet = nn.Linear(8, 4)
        self.unused = nn.Linear(3, 3)
        self.inlet.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.shared(torch.tanh(self.shared(torch.tanh(self.inlet(x))))))
        h, _ = self.recurrent(h.unsqueeze(1).repeat(1, 3, 1))
        return self.outlet(self.norm(h[:, -1]))


class Residual(nn.Module):
    """A branch that is added in place, a dropout in the container's own code, and a norm in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.middle = nn.Conv2d(6, 6, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(6)
        self.frozen = nn.BatchNorm2d(6).eval()
        self.dropout = nn.Dropout(0.2)
        self.outlet = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.norm1(self.inlet(x)))
        h = self.norm2(self.middle(F.dropout(skip, 0.3, self.training)))
        h += skip
        h = self.dropout(F.relu_(self.frozen(h)))
        return self.outlet(h.mean((2, 3)))


class Recurrent(nn.Module):
    """Two recurrent kinds over a sequence, with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(3, 6, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.second = nn.LSTM(6, 6, batch_first=True)
        self.outlet = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.first(x)
        h, (last, _) = self.second(self.dropout(h))
        return self.outlet(last[-1])


class Transformer(nn.Module):
    """Embeddings of position, two encoder layers with attention and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(3, 8)
        self.position = nn.Embedding(5, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True) for _ in range(2)
        )
        self.norm, self.outlet = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inlet(x) + self.position(torch.arange(x.shape[1], device=x.device))
        for layer in self.layers:
            h = layer(h)
        return self.outlet(self.norm(h).mean(1))


class NumpyNoise(nn.Module):
    """Draws from NumPy's and Python's streams."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(1 + 0.1 * np.random.randn() + 0.1 * random.random()) if self.training else x  # noqa: NPY002


def mlp(inputs: int = 12, width: int = 10, *, dropout: float = 0.0) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        layers += [nn.Dropout(dropout)] if dropout else []
        inputs = width
    return nn.Sequential(*layers, nn.Linear(width, 4))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 9, 4),
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (12,)),
    "cnn": (cnn, (3, 6, 6)),
    "channels": (lambda: cnn().to(memory_format=torch.channels_last), (3, 6, 6)),
    "dropout": (lambda: mlp(dropout=0.3), (12,)),
    "shared": (Shared, (12,)),
    "residual": (Residual, (3, 6, 6)),
    "numpy": (lambda: nn.Sequential(mlp(), NumpyNoise()), (12,)),
    "recurrent": (Recurrent, (5, 3)),
    "transformer": (Transformer, (5, 3)),
    "eval": (lambda: mlp().eval(), (12,)),
}


def make(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build a net whose affine parameters are away from one and zero."""
    torch.manual_seed(seed)
    model = NETS[name][0]().to(dtype)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return model


def batches(
    name: str, count: int, *, size: int = 16, seed: int = 1, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(size, *NETS[name][1], generator=generator, dtype=dtype)
        yield x, torch.randint(4, (size,), generator=generator)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


Attach = Callable[[nn.Module, torch.optim.Optimizer], Scope | None]


def train(name: str, attach: Attach = lambda model, optimizer: None, *, steps: int = 20) -> dict[str, Any]:
    """Train a net, and return all that training leaves behind."""
    model = make(name)
    hooked: list[str] = []
    for key, module in model.named_modules():
        module.register_forward_hook(lambda *_, key=key: hooked.append(key) and None)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.register_hook(lambda _: hooked.append("gradient") and None)
    optimizer = torch.optim.AdamW(parameters, 1e-2)
    seed_all()
    scope = attach(model, optimizer)
    losses = []
    for batch in batches(name, steps):
        with scope.step(batch) if scope is not None else nullcontext():
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    return {
        "losses": losses,
        "state": model.state_dict(),
        "gradients": {key: parameter.grad for key, parameter in model.named_parameters()},
        "optimizer": optimizer.state_dict(),
        "streams": RngState(model),
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "hook counts": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "other hooks": [(len(m._backward_hooks), len(m._backward_pre_hooks)) for m in model.modules()],
        "parameter hooks": [len(parameter._backward_hooks or ()) for parameter in model.parameters()],
        "optimizer hooks": len(optimizer._optimizer_step_pre_hooks),
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks fired": hooked,
    }


def seed_all() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)


def traces(a: Any, b: Any, at: str = "") -> list[str]:
    """Name every place at which two results of training differ in a bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if same_bits(a, b) else [at]
    if isinstance(a, RngState) and isinstance(b, RngState):
        return [f"{at}: {stream}" for stream in a.differences(b)]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in traces(a[key], b[key], f"{at}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [found for i, (p, q) in enumerate(zip(a, b, strict=True)) for found in traces(p, q, f"{at}/{i}")]
    return [] if type(a) is type(b) and a == b else [at]


def plain_gradients(
    model: nn.Module, batch: Any, streams: RngState, values: dict[str, Tensor] | None = None
) -> tuple[float, dict[str, Tensor]]:
    """Deepcopy, load, run, differentiate: the twin of every replay. Wants modes and buffers as of the step's start."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if values is not None and name in values:
                parameter.copy_(values[name])
            parameter.grad = None
    streams.restore()
    loss = loss_fn(twin, batch)
    loss.backward()
    return loss.item(), {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in twin.named_parameters()
    }
