"""Norms as people write them themselves, and modules that look like norms and are none."""

import torch
from torch import nn
from torch.nn import functional as F


class LayerNorm(nn.Module):
    """nanoGPT's: a shift only if asked for, and no attribute that says its kind."""

    def __init__(self, ndim, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, input):
        return F.layer_norm(input, self.weight.shape, self.weight, self.bias, 1e-5)


class LayerNormFp32(nn.LayerNorm):
    """Open CLIP's: computed in float32."""

    def forward(self, x):
        x32, w, b = x.float(), self.weight.float(), self.bias.float()
        return F.layer_norm(x32, self.normalized_shape, w, b, self.eps).to(x.dtype)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """MMEngine's: a batch norm that never trains, in any mode."""

    def __init__(self, num_features):
        super().__init__(num_features)
        self.running_mean.copy_(torch.linspace(-0.3, 0.4, num_features))
        self.running_var.copy_(torch.linspace(0.5, 1.7, num_features))
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class FrozenBatchNormAct2d(nn.Module):
    """timm's: everything a buffer, and an activation."""

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.eps, self.drop, self.act = eps, nn.Identity(), nn.ReLU(inplace=True)
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.linspace(-0.3, 0.4, num_features))
        self.register_buffer("running_var", torch.linspace(0.5, 1.7, num_features))

    def forward(self, x):
        w, b, rv, rm = (t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_var, self.running_mean))
        scale = w * (rv + self.eps).rsqrt()
        return self.act(self.drop(x * scale + (b - rm * scale)))


class SyncBatchNorm(nn.Module):
    """MMCV's, in one process."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.num_batches_tracked += 1
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )


class Standardiser(nn.Module):
    """As Keras names things: the momentum is the share that is kept, and no name tells of a norm."""

    def __init__(self, num_features, momentum=0.99, epsilon=1e-3):
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.gamma, self.beta = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer("moving_mean", torch.zeros(num_features))
        self.register_buffer("moving_variance", torch.ones(num_features))

    def forward(self, x):
        axes, shape = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
        mean, var = self.moving_mean, self.moving_variance
        if self.training:
            mean, var = x.mean(axes), x.var(axes, correction=0)
            with torch.no_grad():
                self.moving_mean.lerp_(mean.detach(), 1 - self.momentum)
                self.moving_variance.lerp_(var.detach(), 1 - self.momentum)
        x = (x - mean.view(shape)) * torch.rsqrt(var.view(shape) + self.epsilon)
        return x * self.gamma.view(shape) + self.beta.view(shape)


class FRN(nn.Module):
    """Filter response norm with its threshold: named by letters alone."""

    def __init__(self, channels, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.tau, self.beta = (nn.Parameter(torch.zeros(1, channels, 1, 1)) for _ in range(2))
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x):
        x = x * torch.rsqrt(x.square().mean((2, 3), keepdim=True) + self.eps)
        return torch.max(self.gamma * x + self.beta, self.tau)


class EvoNorm2dB0(nn.Module):
    """timm's, in short: a running variance, and no running mean."""

    def __init__(self, channels, momentum=0.1, eps=1e-3):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.v = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        shape, var = (1, -1, 1, 1), self.running_var
        if self.training:
            var = x.var((0, 2, 3), correction=0)
            with torch.no_grad():
                self.running_var.lerp_(var.detach(), self.momentum)
        own = x * self.v.view(shape) + (x.var((2, 3), correction=0, keepdim=True) + self.eps).sqrt()
        x = x / (var + self.eps).sqrt().view(shape).max(own)
        return x * self.weight.view(shape) + self.bias.view(shape)


class Unit(nn.Module):
    """An RMS norm by ``F.normalize``, under another name."""

    def __init__(self, channels):
        super().__init__()
        self.g = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return F.normalize(x, dim=-1) * self.g * x.shape[-1] ** 0.5


class Doubled(nn.BatchNorm2d):
    """At a gain of 1 what a batch norm with a gain of 2 is."""

    def forward(self, x):
        return 2 * super().forward(x)


class Saturating(nn.Module):
    """Bounded, so that it hardly follows the scale of its input."""

    def forward(self, x):
        return (x / (x.square().mean() * 0 + 1).sqrt()).tanh()


class Sign(nn.Module):
    """Of no scale at all, and of each value alone."""

    def forward(self, x):
        return x / x.square().sqrt().clamp(min=1e-30)


class Softmax(nn.Module):
    """Sums to 1."""

    def forward(self, x):
        return x.exp() / x.exp().sum(-1, keepdim=True)


class SqueezeExcite(nn.Module):
    """Takes a mean over positions."""

    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class LayerScale(nn.Module):
    """A gain alone."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x):
        return x * self.gamma


class Root(nn.Module):
    """An RMS norm without a telling name, as repositories write it."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
