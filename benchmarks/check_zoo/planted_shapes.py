"""Defects of shapes, scales and initialisation."""

import torch
from torch import nn
from torch.nn import functional as F

from .companions import mlp, small_cnn
from .kit import classifier, cross_entropy, images, ns, planted, sgd, squared_error, train, vectors
from .language_models import GPT, language_model
from .other_classifiers import vgg
from .residual_networks import ResNet, conv_of
from .sequences import ragged
from .tables_and_points import ghost, regression


@planted("NS138", "NS121")
def group_norm_of_single_values():
    """GroupNorm(C, C) after global pooling: every value is normalized alone, and the output is the shift."""
    net = nn.Sequential(
        conv_of(3, 12), nn.GroupNorm(4, 12), nn.ReLU(), conv_of(12, 24, 2), nn.GroupNorm(4, 24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 24, 1), nn.GroupNorm(24, 24), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    return classifier(net, steps=40)


@planted("NS138", "NS121")
def layer_norm_of_one():
    """LayerNorm(1) on the one output of a regression: constant."""
    net = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 1), nn.LayerNorm(1))
    return classifier(net, regression, loss_fn=squared_error, steps=60)


@planted("NS138", "NS121")
def instance_norm_before_pooling():
    """InstanceNorm without affine right before global average pooling: the mean of each map is zero."""
    net = nn.Sequential(
        conv_of(3, 12), nn.InstanceNorm2d(12), nn.ReLU(), conv_of(12, 24, 2), nn.InstanceNorm2d(24),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    return classifier(net, steps=40)


class WrongAxis(nn.Module):
    """Transformer-like block on (N, T, C) with BatchNorm1d(T)."""

    def __init__(self, width=16, length=24):
        super().__init__()
        self.lift, self.bn1, self.mid = nn.Linear(8, width), nn.BatchNorm1d(length), nn.Linear(width, width)
        self.bn2, self.head = nn.BatchNorm1d(length), nn.Linear(width, 4)

    def forward(self, x):
        return self.head(F.relu(self.bn2(self.mid(F.relu(self.bn1(self.lift(x)))))).mean(1))


@planted("NS137")
def batch_norm_over_time():
    """BatchNorm1d(T) on (N, T, C): one statistic a time step, all features together."""

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]), batch[2])

    return classifier(WrongAxis(), ragged, loss_fn=loss_fn, steps=80, lr=0.03)


@planted("NS123", "NS138", "NS121")
def decay_on_gains():
    """Weight decay of .05 with SGD on all parameters, 150 steps: gains shrink."""
    net = small_cnn(8)
    opt = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=0.05)
    return classifier(net, steps=150, optimizer=opt)


@planted("NS138", NS109="after 20 steps an eighth of the statistics is initial, though it costs nothing here")
def gains_around_zero():
    """DCGAN's initialisation applied to norms too: gains from N(0, .02)."""
    net = small_cnn(12)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
    return classifier(net, steps=20, lr=0.005)


@planted("NS138", "NS109", NS102="eps holds the statistics of the data away from those of the norm")
def inputs_too_small():
    """Inputs of scale 1e-4 (volts, not millivolts): eps is larger than the variance."""
    net = mlp(norm=nn.BatchNorm1d)
    return classifier(nn.Sequential(nn.BatchNorm1d(12), *net), vectors, scale=1e-4, steps=60)


@planted("NS138")
def small_inputs_to_layer_norm():
    """Features of scale 1e-4 straight into a LayerNorm."""
    net = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))
    return classifier(net, vectors, scale=1e-4, steps=60)


def deep(gain, depth=20, width=32, act=nn.ReLU):
    layers, size = [], 12
    for _ in range(depth):
        linear, size = nn.Linear(size, width), width
        nn.init.normal_(linear.weight, 0.0, gain * (2 / linear.in_features) ** 0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, act()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


@planted("NS126")
def weights_too_large():
    """Twenty layers without norms, weights 1.6 times He's."""
    net = deep(1.6).train()
    return ns.Case(net, cross_entropy, vectors(seed=1), sgd(net, 1e-6), vectors(seed=2))


@planted("NS127")
def sigmoid_depth():
    """Twelve sigmoid layers without norms, torch's initialisation."""
    layers = [nn.Linear(12, 32), nn.Sigmoid()]
    for _ in range(11):
        layers += [nn.Linear(32, 32), nn.Sigmoid()]
    net = nn.Sequential(*layers, nn.Linear(32, 4))
    return classifier(net, vectors, steps=40)


@planted("NS121", "NS127")
def dead_relus():
    """Biases of the second layer have gone to -30, as after a step of a rate too high: all its ReLUs are dead."""
    net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    nn.init.constant_(net[2].bias, -30.0)
    return classifier(net, vectors, steps=30)


@planted("NS121", "NS127")
def dead_channels_after_norm():
    """Half the channels of a norm have shift -8 under a ReLU: dead, and no gradient brings them back."""
    net = small_cnn(12)
    net[4].bias.data[:12] = -8.0
    return classifier(net, steps=60)


@planted("NS125", "NS130")
def dropout_before_norm():
    """Dropout of one half before the norms."""
    net = nn.Sequential(
        nn.Linear(12, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4),
    )  # fmt: skip
    return classifier(net, vectors, steps=120, lr=0.03)


@planted("NS122")
def biases_before_norms():
    """VGG with biases before its norms."""
    return classifier(vgg(), px=16, steps=60, lr=0.02)


@planted("NS124")
def days_and_years():
    """A column of days since 1970 and a column of years go straight into BatchNorm1d."""

    def data(seed):
        rows = vectors(8, 64, seed=seed)
        offset = torch.zeros(12)
        offset[0], offset[1] = 20000.0, 2024.0
        return [(x + offset, y) for x, y in rows]

    net = nn.Sequential(nn.BatchNorm1d(12), *mlp()).train()
    opt, loader = sgd(net, 0.03), data(1)
    train(net, cross_entropy, loader, opt, 80)
    return ns.Case(net, cross_entropy, loader, opt, data(2))


@planted("NS105")
def virtual_batches_of_four():
    """Ghost batch norm with virtual batches of 4."""
    return ghost(4, size=64)


@planted("NS126")
def residual_depth_without_norms():
    """Twenty-four residual branches without norms or scaling: the variance of the stream grows in each."""

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(32, 32), nn.Linear(32, 32)
            for layer in (self.fc1, self.fc2):
                nn.init.kaiming_normal_(layer.weight)

        def forward(self, x):
            return x + self.fc2(F.relu(self.fc1(x)))

    net = nn.Sequential(nn.Linear(12, 32), *[Branch() for _ in range(24)], nn.Linear(32, 4)).train()
    return ns.Case(net, cross_entropy, vectors(seed=1), sgd(net, 1e-7), vectors(seed=2))


@planted("NS138", "NS123")
def layer_norm_gains_around_zero():
    """A GPT whose initialisation draws every parameter, gains of layer norms too, from N(0, .02)."""
    net = GPT(nn.LayerNorm)
    for name, p in net.named_parameters():
        if "ln_" in name and name.endswith("weight"):
            nn.init.normal_(p, 0.0, 0.02)
    return language_model(net, steps=10, lr=1e-3)


@planted("NS124", "NS102", "NS121", "NS138")
def constant_image_channel():
    """A fourth image channel (alpha) that is 255 everywhere, through a norm at the input."""

    def data(seed):
        return [(torch.cat([x, torch.full_like(x[:, :1], 255.0)], 1), y) for x, y in images(seed=seed)]

    net = nn.Sequential(nn.BatchNorm2d(4), ResNet((1, 1), stem=4)).train()
    opt, loader = sgd(net, 0.02), data(1)
    train(net, cross_entropy, loader, opt, 120)
    return ns.Case(net, cross_entropy, loader, opt, data(2))
