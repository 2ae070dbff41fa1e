"""What is said of the growth of gradients in networks whose layers differ in size: pools divide, nothing vanishes."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, max_pool2d, relu

import normscope as ns


class Block(nn.Module):
    def __init__(self, before, width, stride):
        super().__init__()
        self.first, self.second = nn.Conv2d(before, width, 3, stride, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        self.skip = nn.Conv2d(before, width, 1, stride) if before != width else nn.Identity()

    def forward(self, x):
        inner = self.norms[1](self.second(relu(self.norms[0](self.first(x)))))
        return relu(inner + self.skip(x))


def head(width):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)


def resnet():
    stages = [Block(before, width, 1 + (before != width)) for before, width in ((8, 8), (8, 16), (16, 16), (16, 32))]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *stages, Block(32, 32, 1), *head(32))


def convolutions(activation=nn.ReLU, depth=3):
    body = [layer for index in range(depth) for layer in (nn.Conv2d(8 if index else 3, 8, 3, 1, 1), activation())]
    return nn.Sequential(*body, *head(8))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.middle = Block(3, 8, 1), Block(8, 16, 1)
        self.up, self.last, self.out = nn.ConvTranspose2d(16, 8, 2, 2), Block(16, 8, 1), nn.Conv2d(8, 4, 1)
        self.down.skip, self.middle.skip, self.last.skip = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x):
        down = self.down(x)
        up = self.up(self.middle(max_pool2d(down, 2)))
        return self.out(self.last(torch.cat([up, down], 1)))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.embed, self.body, self.head = nn.Linear(3, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.body(self.embed(x.flatten(2).mT)).mean(1))


def dense(widths, activation, norm=False):
    pairs = zip([3 * 16 * 16, *widths[:-1]], widths, strict=True)
    layers = [
        layer
        for before, width in pairs
        for layer in (nn.Linear(before, width), *([nn.BatchNorm1d(width)] if norm else []), activation())
    ]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], 4))


def watched(make, side=16):
    """Return the sentences on the gradient's growth, and the records, of a network at initialization."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with ns.watch(model, optimizer, probes=["gradient-flow"], every=1) as scope:
        for _ in range(2):
            y = model(torch.randn(16, 3, side, side))
            optimizer.zero_grad()
            cross_entropy(y, torch.randint(4, (len(y), *y.shape[2:]))).backward()
            optimizer.step()
    return [line for line in scope.summary().splitlines() if "toward the input" in line], scope.records()


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("make", [resnet, convolutions, UNet, Tokens])
def test_nothing_is_said_of_healthy_networks_that_average(make, side):
    assert watched(make, side if make is not Tokens else 8)[0] == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: dense([64] * 6, nn.Sigmoid),
        lambda: dense([96, 80, 64, 56, 48, 40], nn.Sigmoid),  # no two of one width
        lambda: convolutions(nn.Sigmoid, depth=6),
    ],
)
def test_gradients_that_vanish_are_told(make):
    (says,) = watched(make)[0]
    assert "costly" in says
    assert "Gradients shrink" in says


def test_a_plain_network_with_batch_norm_is_near_theory():
    (says,) = watched(lambda: dense([128] * 12, nn.ReLU, norm=True))[0]
    assert "theory says" in says
    assert "(1.467)" in says


def test_sizes_are_recorded_only_where_layers_differ_in_them():
    class Even(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(4, 4), nn.Tanh())))

        def forward(self, x):
            return self.layers(x[:, 0, :4, 0])

    assert set(watched(Even)[1]["name"].unique()) == {"norm", "output_norm", "growth"}
    sizes = watched(UNet)[1].filter(column("step") == 0)
    positions = dict(sizes.filter(column("name") == "output_positions").select("site", "value").iter_rows())
    widths = dict(sizes.filter(column("name") == "output_width").select("site", "value").iter_rows())
    assert (positions["down.first"], positions["middle.first"], positions["up"]) == (4.0, 1.0, 4.0)
    assert (widths["down.first"], widths["middle.first"], widths["out"]) == (8.0, 16.0, 4.0)


def column(name):
    import polars

    return polars.col(name)
