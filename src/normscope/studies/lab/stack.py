"""Several networks of one architecture as one: their units side by side, so that a step is one for all of them.

The inputs of network k are columns k of (N, K, ...), and its units the k-th of K equal runs of channels. Batch norm
and whatever else works channel by channel is then the same layer with K times the channels, at the cost of one; linear
layers are batched products. At the sizes of the quick presets most of a step is the cost of calling torch, so K
networks take little longer than one. (``torch.func.vmap`` takes two to five times as long as this, and more than the
networks one after another where they are few.)
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normscope import layers
from normscope.builders import ResidualBlock, ResidualNet
from normscope.studies.lab.arms import Noted
from normscope.studies.lab.meters import AbstractMeter
from normscope.studies.lab.models import MLP, Block
from normscope.studies.lab.norms import DetachedBatchNorm

#: Apply their children, and are blind to what a channel stands for. Others can say ``stackable = True``.
_CONTAINERS = (nn.Sequential, nn.ModuleList, MLP, Block, ResidualBlock, ResidualNet)
#: Work value by value.
_ELEMENTWISE = (nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.GELU, nn.LeakyReLU, nn.Flatten)
#: Work channel by channel, or on runs of channels: parameters and buffers have an entry a channel, or count batches.
_CHANNELWISE = (
    layers.BatchNorm1d,
    nn.BatchNorm1d,
    layers.LpNorm,
    DetachedBatchNorm,
    layers.GroupNorm,
    nn.GroupNorm,
)


class Stack(nn.Module):
    """Networks of one architecture, run at once; they begin where the single networks are.

    The single networks are left alone until ``release`` copies parameters and buffers back into them. Modules of other
    kinds than those known here (noise with a stream of its own, say) are run one after another on their own channels:
    right for any module that maps (N, C) to (N, D), and no faster.

    Args:
        models: The networks, alike in all but the values of parameters and buffers, without hooks.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        #: For every network its modules with state, their twins here, and whether a twin holds all networks' state.
        self._links: list[list[tuple[nn.Module, nn.Module, bool]]] = [[] for _ in models]
        self._count = len(models)
        self.net = self._twin(list(models))
        self.train(models[0].training)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (N, K, ...), those of network k in ``x[:, k]``, to outputs (N, K, outputs)."""
        out: Tensor = self.net(x)
        return out.view(len(x), self._count, -1)

    @torch.no_grad()
    def release(self, index: int) -> None:
        """Copy parameters, their gradients and buffers of one network back into the single network that was given."""
        for single, twin, joined in self._links[index]:
            held = _state(twin)
            for name, value in _state(single).items():
                mine, gradient = held[name], held[name].grad
                if joined and value.ndim:
                    mine = mine.view(self._count, *value.shape)[index]
                    gradient = None if gradient is None else gradient.view(self._count, *value.shape)[index].clone()
                value.copy_(mine)
                value.grad = gradient

    def attach(self, meters: Sequence[Sequence[AbstractMeter]]) -> None:
        """Let the meters of each network listen to its own channels."""
        for site in {site for own in meters for meter in own for site in meter.sites}:

            def hear(module: nn.Module, inputs: Any, out: Tensor, site: str = site) -> None:
                values = out.view(len(out), self._count, -1)
                for index, own in enumerate(meters):
                    for meter in own:
                        if site in meter.sites:
                            meter.hear(site, values[:, index])

            self.net.get_submodule(site).register_forward_hook(hear)

    def _twin(self, modules: list[nn.Module]) -> nn.Module:
        first = modules[0]
        kind = type(first)
        if kind is Noted:  # nobody reads what is noted of the stack
            return self._twin([module.get_submodule("inner") for module in modules])
        if kind in _ELEMENTWISE:
            return copy.deepcopy(first)
        if kind in _CONTAINERS or getattr(first, "stackable", False):
            twin = copy.deepcopy(first)
            for name, _ in first.named_children():
                setattr(twin, name, self._twin([module.get_submodule(name) for module in modules]))
            return twin
        if kind is nn.Linear:
            return self._joined(_Linears(self._count), modules)
        if isinstance(first, nn.LayerNorm) and kind is nn.LayerNorm and len(first.normalized_shape) == 1:
            return self._joined(_LayerNorms(self._count, first.eps), modules)
        if kind in _CHANNELWISE and all(value.ndim in (0, 1) for value in _state(first).values()):
            return self._joined(copy.deepcopy(first), modules)
        parts = [copy.deepcopy(module) for module in modules]
        for index, part in enumerate(parts):
            self._links[index] += [
                (single, part.get_submodule(name), False) for name, single in modules[index].named_modules()
            ]
        return _Apart(parts)

    def _joined(self, twin: nn.Module, modules: Sequence[nn.Module]) -> nn.Module:
        """Give the twin the parameters and buffers of all modules, one behind another."""
        states = [_state(module) for module in modules]
        for name, parameter in modules[0].named_parameters(recurse=False):
            values = torch.cat([state[name].detach() for state in states])
            twin.register_parameter(name, nn.Parameter(values, requires_grad=parameter.requires_grad))
        for name, buffer in modules[0].named_buffers(recurse=False):
            twin.register_buffer(name, torch.cat([s[name] for s in states]) if buffer.ndim else buffer.clone())
        for name in ("num_features", "num_channels", "num_groups"):
            if hasattr(twin, name):
                setattr(twin, name, self._count * int(getattr(twin, name)))
        for links, module in zip(self._links, modules, strict=True):
            links.append((module, twin, True))
        return twin


class _Linears(nn.Module):
    """K linear layers, their weights (K * outputs, inputs) one below another."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, K * inputs) to (N, K * outputs)."""
        inputs = x.view(len(x), self.count, -1).transpose(0, 1)
        weights = self.weight.view(self.count, -1, inputs.shape[2]).transpose(1, 2)
        if self.bias is None:
            out = torch.bmm(inputs, weights)
        else:
            out = torch.baddbmm(self.bias.view(self.count, 1, -1), inputs, weights)
        return out.transpose(0, 1).reshape(len(x), -1)


class _LayerNorms(nn.Module):
    """K layer norms over the units of one sample of one network each."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, count: int, eps: float) -> None:
        super().__init__()
        self.count = count
        self.eps = eps
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, K * C) to the same shape."""
        return nn.functional.group_norm(x, self.count, self.weight, self.bias, self.eps)


class _Apart(nn.Module):
    """K modules, each applied to its own channels."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, K * C) to (N, K * D)."""
        own = x.view(len(x), len(self.parts), -1).unbind(1)
        return torch.cat([part(values) for part, values in zip(self.parts, own, strict=True)], 1)


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers that a module has itself."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
