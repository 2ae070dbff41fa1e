"""Norms as other libraries write them: of the same names, attributes and forwards."""

import torch
from torch import nn
from torch.nn import functional as F


class BatchNormAct2d(nn.BatchNorm2d):
    """timm's: batch norm, dropout and activation in one module."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1, apply_act=True, act_layer=nn.ReLU, drop_layer=None):
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.drop = drop_layer() if drop_layer is not None else nn.Identity()
        self.act = act_layer(inplace=True) if apply_act else nn.Identity()

    def forward(self, x):
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(self.drop(x))


class GroupNormAct(nn.GroupNorm):
    """timm's."""

    def __init__(self, num_channels, num_groups=4, eps=1e-5, act_layer=nn.ReLU):
        super().__init__(num_groups, num_channels, eps=eps)
        self.drop, self.act = nn.Identity(), act_layer(inplace=True)

    def forward(self, x):
        return self.act(self.drop(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)))


class LayerNorm2d(nn.LayerNorm):
    """timm's: over the channels of ``(N, C, H, W)``."""

    def __init__(self, num_channels, eps=1e-6):
        super().__init__(num_channels, eps=eps)

    def forward(self, x):
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class LayerNormAct(nn.LayerNorm):
    """timm's."""

    def __init__(self, normalized_shape, eps=1e-5, act_layer=nn.ReLU):
        super().__init__(normalized_shape, eps=eps)
        self.drop, self.act = nn.Identity(), act_layer(inplace=True)

    def forward(self, x):
        return self.act(self.drop(F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)))


class FrozenBatchNorm2d(nn.Module):
    """torchvision's: statistics, gain and shift are buffers."""

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.linspace(0.5, 1.5, num_features))
        self.register_buffer("bias", torch.linspace(-0.5, 0.5, num_features))
        self.register_buffer("running_mean", torch.linspace(-0.2, 0.3, num_features))
        self.register_buffer("running_var", torch.linspace(0.6, 1.3, num_features))

    def forward(self, x):
        w, b, rv, rm = (t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_var, self.running_mean))
        scale = w * (rv + self.eps).rsqrt()
        return x * scale + (b - rm * scale)


class LayerNorm(nn.Module):
    """ConvNeXt's: channels last or first."""

    def __init__(self, normalized_shape, eps=1e-6, data_format="channels_last"):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(normalized_shape)), nn.Parameter(torch.zeros(normalized_shape))
        self.eps, self.data_format, self.normalized_shape = eps, data_format, (normalized_shape,)

    def forward(self, x):
        if self.data_format == "channels_last":
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class LlamaRMSNorm(nn.Module):
    """Hugging Face's."""

    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


class T5LayerNorm(LlamaRMSNorm):
    """Hugging Face's, an RMS norm by another name."""


class GemmaRMSNorm(nn.Module):
    """Hugging Face's: the gain is kept as its distance from 1."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight.float())


class AnnotatedLayerNorm(nn.Module):
    """The Annotated Transformer's: with the unbiased deviation, and epsilon beside it; torch has no such norm."""

    def __init__(self, features, eps=1e-6):
        super().__init__()
        self.a_2, self.b_2 = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.eps = eps

    def forward(self, x):
        return self.a_2 * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps) + self.b_2


class GlobalChannelLayerNorm(nn.Module):
    """Speech separation's: over channels and time, gain of shape (C, 1)."""

    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.gamma, self.beta = nn.Parameter(torch.ones(dim, 1)), nn.Parameter(torch.zeros(dim, 1))

    def forward(self, x):
        mean = x.mean((1, 2), keepdim=True)
        var = (x - mean).pow(2).mean((1, 2), keepdim=True)
        return self.gamma * (x - mean) / (var + self.eps).sqrt() + self.beta


class ABN(nn.Module):
    """In-place ABN's: the activation is a name."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1, activation="leaky_relu", activation_param=0.01):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.activation, self.activation_param = activation, activation_param
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x):
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return F.leaky_relu(x, self.activation_param)


class WrappedLayerNorm(nn.Module):
    """A wrapper that turns the axes around a norm of torch's."""

    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        return self.norm(x.transpose(1, -1)).transpose(1, -1)


class Normalize(nn.Module):
    """A fixed standardisation of images: named like a norm, and no norm."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


class EvoNormS0(nn.Module):
    """timm's, in short: an activation divided by a group's deviation."""

    def __init__(self, channels, groups=2):
        super().__init__()
        self.groups, self.v = groups, nn.Parameter(torch.ones(1, channels, 1, 1))
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        n, c, _, _ = x.shape
        std = (
            x.view(n, self.groups, -1).var(-1).add(1e-5).sqrt().repeat_interleave(c // self.groups, 1).view(n, c, 1, 1)
        )
        return x * torch.sigmoid(self.v * x) / std * self.weight + self.bias


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2's: it strengthens some channels over others, and normalizes none."""

    def __init__(self, channels):
        super().__init__()
        self.gamma, self.beta = (
            nn.Parameter(torch.ones(1, channels, 1, 1)),
            nn.Parameter(torch.zeros(1, channels, 1, 1)),
        )

    def forward(self, x):
        g = x.norm(2, (2, 3), True)
        return self.gamma * (x * (g / (g.mean(1, keepdim=True) + 1e-6))) + self.beta + x


class PixelNorm(nn.Module):
    """StyleGAN's: nothing learned."""

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class GroupNorm32(nn.GroupNorm):
    """Diffusion models': computed in float32."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)
