"""Batch norm within a network: its share of the time of a training step, and the peak memory of one."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscope import layers
from normscope.bench._timing import ratio, rounds

Norm = Callable[[int], nn.Module]

#: Whole steps: which network, and in what arithmetic and layout.
STEPS = [
    {"model": model, "kind": kind}
    for model in ("vgg", "resnet18")
    for kind in ("float32", "bf16 autocast", "bf16 autocast, channels_last")
]
MEMORY = [{"model": model, "arm": arm} for model in ("vgg", "resnet18") for arm in ("torch", "ours", "in place")]
_BATCH = {"vgg": 128, "resnet18": 64}
_SECONDS = 25.0


def _torchs(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def _torchs_leaky(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.LeakyReLU(0.01))


def _ours(channels: int) -> nn.Module:
    return layers.BatchNorm2d(channels, activation="relu")


def _ours_leaky(channels: int) -> nn.Module:
    return layers.BatchNorm2d(channels, activation="leaky_relu")


def _in_place(channels: int) -> nn.Module:
    return layers.BatchNorm2d(channels, activation="leaky_relu", inplace=True)


def _none(channels: int) -> nn.Module:
    return nn.Identity()


class _Block(nn.Module):
    """A basic block of ResNet-18: two convolutions and a shortcut, added before the last activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, plain: Norm) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = norm(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.last = plain(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), plain(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.last(self.second(self.norm(self.first(x)))) + self.shortcut(x))


def build(model: str, norm: Norm, plain: Norm) -> nn.Module:
    """Return a network for 32x32 images of three channels.

    Args:
        model: ``"vgg"``, 8 convolutions of 64 to 512 channels, or ``"resnet18"``.
        norm: Makes a normalization with its activation.
        plain: Makes one without.
    """
    if model == "vgg":
        parts: list[nn.Module] = []
        inputs = 3
        for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
            if not width:
                parts.append(nn.MaxPool2d(2))
                continue
            parts += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), norm(width)]
            inputs = width
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(inputs, 10))
    parts = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), norm(64)]
    inputs = 64
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        parts.append(_Block(inputs, width, stride, norm, plain))
        inputs = width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def _plain_of(norm: Norm) -> Norm:
    if norm is _none:
        return _none
    if norm in (_torchs, _torchs_leaky):
        return nn.BatchNorm2d
    if norm is _in_place:
        return lambda channels: layers.BatchNorm2d(channels, inplace=True)
    return layers.BatchNorm2d


class _Trainer:
    def __init__(self, model: str, norm: Norm, kind: str) -> None:
        torch.manual_seed(0)
        self.model = build(model, norm, _plain_of(norm))
        self.x = torch.randn(_BATCH[model], 3, 32, 32)
        self.y = torch.randint(10, (_BATCH[model],))
        if "channels_last" in kind:
            for parameter in self.model.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.low = "bf16" in kind
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        within: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if self.low else nullcontext()
        with within:
            loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()


def measure_step(model: str, kind: str) -> dict[str, Any]:
    """Time a training step with torch's batch norm and ReLU, with ours, and with neither.

    Args:
        model: ``"vgg"`` or ``"resnet18"``.
        kind: ``"float32"``, ``"bf16 autocast"``, or the latter with ``", channels_last"``.

    Returns:
        Medians in milliseconds, the ratio of the step with torch's to that with ours, and the share of either step that
        batch norm and activation take, all within rounds.
    """
    trainers = {
        name: _Trainer(model, norm, kind) for name, norm in (("torch", _torchs), ("ours", _ours), ("none", _none))
    }
    times = rounds({name: trainer.step for name, trainer in trainers.items()}, time.perf_counter, _SECONDS)
    share = {name: 1 - ratio(times, "none", name)["median"] for name in ("torch", "ours")}
    return {
        "model": model,
        "kind": kind,
        "batch": _BATCH[model],
        "ms": {name: 1e3 * sorted(ran)[len(ran) // 2] for name, ran in times.items()},
        "torch / ours": ratio(times, "torch", "ours"),
        "share": share,
    }


def measure_memory(model: str, arm: str) -> dict[str, Any]:
    """Return how much the process's memory grows over three training steps, at its peak.

    Args:
        model: ``"vgg"`` or ``"resnet18"``.
        arm: ``"torch"`` or ``"ours"`` (leaky ReLU, which can be inverted), or ``"in place"``.
    """
    import resource

    norm = {"torch": _torchs_leaky, "ours": _ours_leaky, "in place": _in_place}[arm]
    trainer = _Trainer(model, norm, "float32")
    unit = 1024 if sys.platform.startswith("linux") else 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for _ in range(3):
        trainer.step()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"model": model, "arm": arm, "batch": _BATCH[model], "bytes": after - before}
