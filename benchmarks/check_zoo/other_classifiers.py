"""Image classifiers of other families: MobileNet, EfficientNet, DenseNet, VGG, transformers, volumes."""

import torch
from torch import nn
from torch.nn import functional as F

from .kit import classifier, healthy
from .residual_networks import StochasticDepth, conv_of


class InvertedResidual(nn.Module):
    def __init__(self, width, out, stride, expand):
        super().__init__()
        hidden = width * expand
        self.residual = stride == 1 and width == out
        self.conv = nn.Sequential(
            conv_of(width, hidden, size=1), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True),
            conv_of(hidden, hidden, stride, hidden), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True),
            conv_of(hidden, out, size=1), nn.BatchNorm2d(out),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


@healthy()
def mobilenet_v2():
    """MobileNetV2: inverted residuals, depthwise convolutions, ReLU6, dropout before the classifier."""
    net = nn.Sequential(
        conv_of(3, 8), nn.BatchNorm2d(8), nn.ReLU6(inplace=True), InvertedResidual(8, 8, 1, 2),
        InvertedResidual(8, 16, 2, 4), InvertedResidual(16, 16, 1, 4), conv_of(16, 48, size=1), nn.BatchNorm2d(48),
        nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 4),
    )  # fmt: skip
    return classifier(net, px=16, steps=80, lr=0.03)


class SqueezeExcite(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


class MBConv(nn.Module):
    def __init__(self, width, out, stride, drop):
        super().__init__()
        hidden = 4 * width
        self.block = nn.Sequential(
            conv_of(width, hidden, size=1), nn.BatchNorm2d(hidden), nn.SiLU(),
            conv_of(hidden, hidden, stride, hidden), nn.BatchNorm2d(hidden), nn.SiLU(),
            SqueezeExcite(hidden, width // 4), conv_of(hidden, out, size=1), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.path = StochasticDepth(drop)
        self.residual = stride == 1 and width == out

    def forward(self, x):
        return x + self.path(self.block(x)) if self.residual else self.block(x)


@healthy()
def efficientnet():
    """EfficientNet: MBConv with squeeze-and-excitation, SiLU, stochastic depth, RMSprop of its recipe."""
    net = nn.Sequential(
        conv_of(3, 8), nn.BatchNorm2d(8), nn.SiLU(), MBConv(8, 8, 1, 0.05), MBConv(8, 16, 2, 0.1),
        MBConv(16, 16, 1, 0.1), conv_of(16, 48, size=1), nn.BatchNorm2d(48), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 4),
    )  # fmt: skip
    optimizer = torch.optim.RMSprop(net.parameters(), 1e-3, alpha=0.9, eps=1e-3, momentum=0.9, weight_decay=1e-5)
    return classifier(net, px=16, steps=90, optimizer=optimizer)


class DenseLayer(nn.Module):
    def __init__(self, width, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), conv_of(width, 4 * growth, size=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), conv_of(4 * growth, growth)

    def forward(self, x):
        return torch.cat([x, self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))], 1)


@healthy()
def densenet():
    """DenseNet: norm before convolution, features that are concatenated, transitions."""
    net = nn.Sequential(
        conv_of(3, 8), *[DenseLayer(8 + 4 * k, 4) for k in range(3)],
        nn.BatchNorm2d(20), nn.ReLU(), conv_of(20, 12, size=1), nn.AvgPool2d(2),
        *[DenseLayer(12 + 4 * k, 4) for k in range(3)],
        nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    return classifier(net, steps=80, lr=0.03)


def vgg(bias=True, norm=nn.BatchNorm2d):
    """Return VGG with batch norm, as torchvision has it: biases in the convolutions, dropout in the classifier."""
    layers, width = [], 3
    for out in (8, "pool", 16, "pool", 32, 32, "pool"):
        if out == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(width, out, 3, padding=1, bias=bias), norm(out), nn.ReLU(inplace=True)]
            width = out
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    head = [nn.Flatten(), nn.Linear(32 * 4, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 4)]
    return nn.Sequential(*layers, *head)


@healthy()
def vgg_bn():
    """VGG-BN of torchvision, biases before the norms and dropout in the classifier."""
    return classifier(vgg(), px=16, steps=80, lr=0.02)


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))


class ViTBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), SelfAttention(width, 4)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, width=32, depth=3, classes=4):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(0.02 * torch.randn(1, 5, width))
        self.blocks = nn.Sequential(*[ViTBlock(width) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)
        nn.init.trunc_normal_(self.cls, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


@healthy()
def vit():
    """ViT with a class token, AdamW with decay on matrices only."""
    net = ViT()
    decay = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return classifier(net, steps=80, optimizer=torch.optim.AdamW(groups, 2e-3))


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width, drop):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width, eps=1e-6)
        self.pw1, self.pw2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma, self.path = nn.Parameter(1e-2 * torch.ones(width)), StochasticDepth(drop)

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + self.path((self.gamma * self.pw2(F.gelu(self.pw1(y)))).permute(0, 3, 1, 2))


@healthy()
def convnext():
    """ConvNeXt: depthwise 7x7, LayerNorm in channels-last, layer scale, drop path."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 2, 2), LayerNorm2d(16), ConvNeXtBlock(16, 0.0), ConvNeXtBlock(16, 0.1), LayerNorm2d(16),
        nn.Conv2d(16, 32, 2, 2), ConvNeXtBlock(32, 0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(32),
        nn.Linear(32, 4),
    )  # fmt: skip
    return classifier(net, steps=60, optimizer=torch.optim.AdamW(net.parameters(), 4e-3, weight_decay=0.05))


class MlpMixerBlock(nn.Module):
    def __init__(self, tokens, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 24, 2, 2), nn.LayerNorm(24), nn.Linear(24, 4)
        self.blocks = nn.Sequential(MlpMixerBlock(16, 24), MlpMixerBlock(16, 24))

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x).flatten(2).transpose(1, 2))).mean(1))


@healthy()
def mlp_mixer():
    """MLP-Mixer: linear layers over tokens and over channels, LayerNorm."""
    net = Mixer()
    return classifier(net, optimizer=torch.optim.Adam(net.parameters(), 3e-3))


@healthy()
def volumes():
    """3-D convolutions with BatchNorm3d on small volumes."""
    net = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(8, 16, 3, padding=1, bias=False), nn.BatchNorm3d(16), nn.ReLU(), nn.AdaptiveAvgPool3d(1),
        nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0].unsqueeze(1)), batch[1])

    return classifier(net, px=8, channels=8, size=16, steps=80, lr=0.03, loss_fn=loss_fn)
