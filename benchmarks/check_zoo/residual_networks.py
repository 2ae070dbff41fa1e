"""Image classifiers with residual connections, as torchvision and timm have them, in small."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from .kit import classifier, cross_entropy, healthy, images, ns, sgd, train


def conv_of(width, out, stride=1, groups=1, size=3):
    return nn.Conv2d(width, out, size, stride, size // 2, groups=groups, bias=False)


class BasicBlock(nn.Module):
    def __init__(self, width, out, stride=1, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1, self.bn1 = conv_of(width, out, stride), norm(out)
        self.conv2, self.bn2 = conv_of(out, out), norm(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or width != out:
            self.downsample = nn.Sequential(conv_of(width, out, stride, size=1), norm(out))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + identity)


class ResNet(nn.Module):
    """He's networks: torchvision's initialisation, a stem for small images."""

    def __init__(self, blocks=(2, 2, 2, 2), width=8, classes=4, norm=nn.BatchNorm2d, stem=3, zero_init=False):
        super().__init__()
        self.conv1, self.bn1, self.relu = conv_of(stem, width), norm(width), nn.ReLU(inplace=True)
        stages, channels = [], width
        for stage, count in enumerate(blocks):
            out = width * 2**stage
            row = [
                BasicBlock(channels if k == 0 else out, out, 2 if stage and k == 0 else 1, norm) for k in range(count)
            ]
            stages.append(nn.Sequential(*row))
            channels = out
        self.layers = nn.Sequential(*stages)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock) and zero_init:
                nn.init.zeros_(module.bn2.weight)

    def features(self, x):
        return self.layers(self.relu(self.bn1(self.conv1(x))))

    def forward(self, x):
        return self.fc(self.avgpool(self.features(x)).flatten(1))


@healthy()
def resnet18():
    """ResNet-18 with basic blocks and a small-image stem."""
    return classifier(ResNet(), px=16, size=32, steps=80, lr=0.02)


@healthy()
def resnet20():
    """ResNet-20 for CIFAR, last gain of each block starting from zero."""
    return classifier(ResNet((3, 3, 3), zero_init=True), px=8, size=32, steps=90, lr=0.03)


class PreActBlock(nn.Module):
    def __init__(self, width, out, stride=1):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), conv_of(width, out, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(out), conv_of(out, out)
        self.shortcut = conv_of(width, out, stride, size=1) if stride != 1 or width != out else None

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if self.shortcut is not None else x
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


@healthy()
def wide_preact_resnet():
    """Wide ResNet with pre-activation blocks and weight decay on all parameters."""
    net = nn.Sequential(
        conv_of(3, 8), PreActBlock(8, 16), PreActBlock(16, 16), PreActBlock(16, 32, 2), PreActBlock(32, 32),
        nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9, weight_decay=5e-4, nesterov=True)
    return classifier(net, steps=80, optimizer=optimizer)


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: a batch norm that applies its activation."""

    def __init__(self, width, act=nn.ReLU, **options):
        super().__init__(width, **options)
        self.drop = nn.Identity()
        self.act = act(inplace=True) if act is not None else nn.Identity()

    def forward(self, x):
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else factor
        use = self.training or not self.track_running_stats
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, use, factor, self.eps)
        return self.act(self.drop(x))


class Bottleneck(nn.Module):
    def __init__(self, width, out, stride=1, groups=1):
        super().__init__()
        middle = out // 2
        self.conv1, self.bn1 = conv_of(width, middle, size=1), BatchNormAct2d(middle)
        self.conv2, self.bn2 = conv_of(middle, middle, stride, groups), BatchNormAct2d(middle)
        self.conv3, self.bn3 = conv_of(middle, out, size=1), BatchNormAct2d(out, act=None)
        self.down = None
        if stride != 1 or width != out:
            self.down = nn.Sequential(nn.AvgPool2d(stride), conv_of(width, out, size=1), BatchNormAct2d(out, act=None))

    def forward(self, x):
        y = self.bn3(self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x))))))
        return F.relu(y + (x if self.down is None else self.down(x)))


def timm_resnext():
    """Return a ResNeXt with norms that apply the activation."""
    return nn.Sequential(
        conv_of(3, 16), BatchNormAct2d(16), Bottleneck(16, 32, groups=4), Bottleneck(32, 32, groups=4),
        Bottleneck(32, 64, 2, groups=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip


@healthy()
def timm_norm_act():
    """timm-like ResNeXt whose BatchNormAct2d applies the activation."""
    return classifier(timm_resnext(), px=8, steps=80, lr=0.02)


@healthy()
def sync_converted():
    """ResNet converted to SyncBatchNorm and trained in one process."""
    return classifier(nn.SyncBatchNorm.convert_sync_batchnorm(ResNet((1, 1, 1))), steps=80, lr=0.03)


class ScaledConv2d(nn.Conv2d):
    """Standardised weights with a gain, as in networks without normalizers."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x):
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(var * self.weight[0].numel() + 1e-4) * self.gain
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NFBlock(nn.Module):
    def __init__(self, width, beta):
        super().__init__()
        self.conv1, self.conv2 = ScaledConv2d(width, width, 3, padding=1), ScaledConv2d(width, width, 3, padding=1)
        self.beta, self.skip_gain = beta, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        y = F.relu(x) * 1.7139588594436646 / self.beta
        y = self.conv2(F.relu(self.conv1(y)) * 1.7139588594436646)
        return x + 0.2 * y * self.skip_gain


@healthy()
def normalizer_free():
    """NF-ResNet: scaled weight standardisation, no norm, SkipInit."""
    blocks = [NFBlock(16, (1 + 0.04 * k) ** 0.5) for k in range(4)]
    net = nn.Sequential(
        ScaledConv2d(3, 16, 3, padding=1), *blocks, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )
    return classifier(net, lr=0.02)


class StochasticDepth(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.drop = drop

    def forward(self, x):
        if not self.training:
            return x
        keep = torch.empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.drop)
        return x * keep / (1 - self.drop)


class DropBlock(BasicBlock):
    def __init__(self, width, drop):
        super().__init__(width, width)
        self.path = StochasticDepth(drop)

    def forward(self, x):
        return F.relu(x + self.path(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))))


@healthy()
def stochastic_depth():
    """ResNet with stochastic depth growing to 0.2."""
    blocks = [DropBlock(12, drop) for drop in (0.05, 0.1, 0.15, 0.2)]
    net = nn.Sequential(
        conv_of(3, 12), nn.BatchNorm2d(12), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)
    )
    return classifier(net, steps=80, lr=0.03)


@healthy()
def group_norm_resnet():
    """ResNet with GroupNorm of 8 groups (BiT-like), small batches of 4."""

    def norm(width):
        return nn.GroupNorm(8, width)

    return classifier(ResNet((1, 1, 1), width=16, norm=norm), size=4, batches=24, steps=80, lr=0.01)


@healthy()
def average_momentum():
    """ResNet whose norms average over all batches (momentum=None), statistics renewed at the end."""
    net = ResNet((1, 1), norm=lambda width: nn.BatchNorm2d(width, momentum=None))
    case = classifier(net, steps=60, lr=0.03)
    torch.optim.swa_utils.update_bn(case.loader, net)
    return case


@healthy()
def cifar_data_loader():
    """ResNet fed by a shuffling DataLoader whose short last batch has 17 images."""

    def whole(seed):
        data = images(9, 32, seed=seed)
        return TensorDataset(torch.cat([x for x, _ in data])[:273], torch.cat([y for _, y in data])[:273])

    net = ResNet((1, 1, 1)).train()
    loader, held = DataLoader(whole(1), 32, shuffle=True), DataLoader(whole(2), 64)
    optimizer = sgd(net, 0.03)
    train(net, cross_entropy, loader, optimizer, 90)
    return ns.Case(net, cross_entropy, loader, optimizer, held)
