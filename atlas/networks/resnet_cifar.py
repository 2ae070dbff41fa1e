"""ResNet-20 at half its width, with batch norm, on CIFAR-10: nine blocks with skips, He's initial weights."""

import torch
from torch import Tensor, nn

import normscope as ns
from images import loaders, loss_fn


class BasicBlock(nn.Module):
    """Two convolutions with a skip connection around them.

    Args:
        inside: Channels of the input.
        outside: Channels of the output.
        stride: Of the first convolution.
        skips: Whether the skip connection is there.
    """

    def __init__(self, inside: int, outside: int, stride: int, *, skips: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU()
        self.skips = skips
        self.skip: nn.Module = nn.Identity()
        if skips and (stride != 1 or inside != outside):
            self.skip = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.skip(x) if self.skips else out)


def make_network(blocks: int = 3, width: int = 8, *, skips: bool = True) -> nn.Module:
    """Return the network.

    Args:
        blocks: Blocks of each of the three stages.
        width: Channels of the first stage; each later stage has twice as many.
        skips: Whether blocks have their skip connections.
    """
    stem: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    stages: list[nn.Module] = []
    inside = width
    for stage in range(3):
        for block in range(blocks):
            stages.append(BasicBlock(inside, width << stage, 2 if stage and not block else 1, skips=skips))
            inside = width << stage
    model = nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def make_case() -> ns.Case:
    """Return the training set-up: SGD with momentum and weight decay."""
    return _case(make_network())


def make_case_without_skips() -> ns.Case:
    """Return the same set-up of the network without its skip connections."""
    return _case(make_network(skips=False))


def _case(model: nn.Module) -> ns.Case:
    train, test = loaders("cifar10", train=14_000, test=2_000, batch=64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return ns.Case(model, loss_fn, train, optimizer, test)
