"""Healthy networks of many architectures, for images, volumes and vectors, trained in the plain way."""

import torch
from healthy import Head, conv_norm, fit, healthy, images
from torch import nn
from torch.nn import functional as F

from normscope.evidence import Case, examples


@healthy
def plain_dense():
    model = examples.seeded(examples.mlp)
    return fit(model, examples.data((12,)), eval_loader=examples.data((12,), batches=4, seed=9))


@healthy
def plain_convolutions_with_adam():
    model = examples.seeded(examples.cnn)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return fit(model, images(), optimizer=optimizer, eval_loader=images(batches=4, seed=9))


@healthy
def untrained():
    model = examples.seeded(examples.residual)
    return Case(model.train(), examples.loss_fn, images(), torch.optim.SGD(model.parameters(), lr=0.1))


@healthy
def residual():
    model = examples.seeded(examples.residual)
    return fit(model, images(), eval_loader=images(batches=4, seed=9))


@healthy
def residual_with_zero_gains_and_decay_on_weights_only():
    def make():
        model = examples.residual()
        for block in model.blocks:
            nn.init.zeros_(block[4].weight)
        return model

    model = examples.seeded(make)
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": weights, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    return fit(model, images(), optimizer=torch.optim.SGD(groups, lr=0.05, momentum=0.9))


@healthy
def preactivation_residual():
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

        def forward(self, x):
            return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))

    model = examples.seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), Block(8), Block(8), Block(8), nn.BatchNorm2d(8), nn.ReLU(), Head(8)
        )
    )
    return fit(model, images(), eval_loader=images(batches=4, seed=9))


@healthy
def deep_residual():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = conv_norm(3, 8)
            self.blocks = nn.ModuleList(nn.Sequential(conv_norm(8, 8), conv_norm(8, 8)) for _ in range(12))
            self.head = Head(8)

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

    model = examples.seeded(Deep)
    return fit(model, images(), epochs=4)


@healthy
def dense_connections():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.parts = nn.ModuleList(
                nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(), nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False))
                for i in range(4)
            )
            self.norm, self.head = nn.BatchNorm2d(24), Head(24)

        def forward(self, x):
            x = self.stem(x)
            for part in self.parts:
                x = torch.cat([x, part(x)], 1)
            return self.head(F.relu(self.norm(x)))

    model = examples.seeded(Dense)
    return fit(model, images(), eval_loader=images(batches=4, seed=9))


@healthy
def mobile_inverted_residuals():
    class Inverted(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.body = nn.Sequential(
                conv_norm(width, 4 * width, 1, act=nn.ReLU6),
                conv_norm(4 * width, 4 * width, groups=4 * width, act=nn.ReLU6),
                conv_norm(4 * width, width, 1, act=nn.Identity),
            )

        def forward(self, x):
            return x + self.body(x)

    model = examples.seeded(lambda: nn.Sequential(conv_norm(3, 6, act=nn.ReLU6), Inverted(6), Inverted(6), Head(6)))
    return fit(model, images(), eval_loader=images(batches=4, seed=9))


@healthy
def grouped_convolutions():
    model = examples.seeded(
        lambda: nn.Sequential(conv_norm(3, 16), conv_norm(16, 16, groups=4), conv_norm(16, 16, groups=2), Head(16))
    )
    return fit(model, images())


@healthy
def depthwise_separable():
    model = examples.seeded(
        lambda: nn.Sequential(
            conv_norm(3, 12), conv_norm(12, 12, groups=12), conv_norm(12, 16, 1), conv_norm(16, 16, groups=16), Head(16)
        )
    )
    return fit(model, images())


@healthy
def squeeze_and_excitation():
    class Squeeze(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.gate = nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width), nn.Sigmoid())

        def forward(self, x):
            return x * self.gate(x.mean((2, 3)))[:, :, None, None]

    model = examples.seeded(lambda: nn.Sequential(conv_norm(3, 8), Squeeze(8), conv_norm(8, 12), Squeeze(12), Head(12)))
    return fit(model, images())


@healthy
def inception_branches():
    class Branches(nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.one, self.three, self.five = conv_norm(inputs, 4, 1), conv_norm(inputs, 4), conv_norm(inputs, 4, 5)

        def forward(self, x):
            return torch.cat([self.one(x), self.three(x), self.five(x)], 1)

    return fit(examples.seeded(lambda: nn.Sequential(Branches(3), nn.MaxPool2d(2), Branches(12), Head(12))), images())


@healthy
def vgg_like_with_dropout_after_the_norms():
    def make():
        parts = [
            conv_norm(3, 8),
            conv_norm(8, 8),
            nn.MaxPool2d(2),
            conv_norm(8, 12),
            conv_norm(12, 12),
            nn.MaxPool2d(2),
        ]
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(48, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 4))

    return fit(examples.seeded(make), images(), eval_loader=images(batches=4, seed=9))


@healthy
def channels_last():
    model = examples.seeded(examples.cnn).to(memory_format=torch.channels_last)
    loader = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in images()]
    return fit(model, loader)


@healthy
def volumes():
    def make():
        parts = [nn.Conv3d(2, 6, 3, padding=1, bias=False), nn.BatchNorm3d(6), nn.ReLU()]
        return nn.Sequential(*parts, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 4))

    return fit(examples.seeded(make), examples.data((2, 4, 4, 4)))


@healthy
def sequence_convolutions():
    return fit(
        examples.seeded(examples.sequence),
        examples.data((12, 16)),
        eval_loader=examples.data((12, 16), batches=4, seed=9),
    )
