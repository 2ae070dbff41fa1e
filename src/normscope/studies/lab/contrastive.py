"""A small contrastive task on images: two views of each, an encoder of queries, a slow one of keys, and a queue."""

import copy
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from normscope.studies.lab.streams import generator

#: Values of a code, which queries and keys are compared by.
CODE_SIZE = 32


class SubBatchNorm(nn.Module):
    """Batch norm over runs of ``size`` rows, as on several devices; in eval mode over all rows that it is given.

    Args:
        features: Units.
        size: Rows of a sub-batch.
    """

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, features) to the same shape; in train mode N is a multiple of ``size``."""
        groups = x.view(-1, self.size if self.training else len(x), x.shape[1])
        variance, mean = torch.var_mean(groups, 1, correction=0, keepdim=True)
        return ((groups - mean) * (variance + 1e-5).rsqrt()).view_as(x) * self.weight + self.bias


class Encoder(nn.Module):
    """Hidden layers, whose last values are the features, and a linear layer to codes of length 1.

    Args:
        inputs: Numbers of an input.
        width: Units of each hidden layer.
        depth: Hidden layers.
        norm: ``"batch"`` over sub-batches, ``"layer"`` or ``"none"``, in front of each rectifier.
        size: Rows of a sub-batch.
        seed: Of the weights: the same whatever the norm; He's scale.
    """

    def __init__(self, inputs: int, width: int, depth: int, norm: str, size: int, seed: int) -> None:
        super().__init__()
        norms = {
            "batch": lambda: SubBatchNorm(width, size),
            "layer": lambda: nn.LayerNorm(width),
            "none": nn.Identity,
        }
        sizes = [inputs, *([width] * depth)]
        parts = ([_linear(a, b), norms[norm](), nn.ReLU()] for a, b in itertools.pairwise(sizes))
        self.features = nn.Sequential(*itertools.chain(*parts))
        self.head = _linear(width, CODE_SIZE)
        source = generator(seed, "init")
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    spread = math.sqrt(2 / module.in_features)
                    module.weight.copy_(torch.randn(module.weight.shape, generator=source) * spread)
                    module.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs) to codes (N, 32) of length 1."""
        return normalize(self.head(self.features(x)), dim=1)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, inputs, outputs)


def view_of(images: Tensor, source: torch.Generator, *, hidden: float, noise: float) -> Tensor:
    """Return another view of each image: moved by at most a pixel, pixels hidden, noise added.

    Args:
        images: (N, C, H, W).
        source: Of the draws.
        hidden: Share of pixels set to 0.
        noise: Standard deviation of what is added.

    Returns:
        Flattened views (N, C * H * W).
    """
    count, _, height, width = images.shape
    down, right = (torch.randint(-1, 2, (count, 1), generator=source) for _ in range(2))
    rows = (torch.arange(height) + down).clamp(0, height - 1)
    columns = (torch.arange(width) + right).clamp(0, width - 1)
    moved = images[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
    kept = torch.rand(count, 1, height, width, generator=source) >= hidden
    return (moved * kept + noise * torch.randn(moved.shape, generator=source)).flatten(1)


def contrast(
    encoder: nn.Module,
    images: Tensor,
    seed: int,
    *,
    steps: int,
    batch: int,
    lr: float,
    shuffle: bool,
    queue: int = 512,
    slowness: float = 0.95,
    temperature: float = 0.1,
    hidden: float = 0.2,
    noise: float = 0.1,
    compare_from: int = 0,
) -> Iterator[tuple[int, float, float, float]]:
    """Train an encoder to tell an image's other view from a queue of keys (He et al. 2019), with Adam.

    Args:
        encoder: Of queries; trained in place.
        images: Training images (N, C, H, W).
        seed: Of batches, views and shuffles.
        steps: Number of updates.
        batch: Images of a step.
        lr: Learning rate of Adam.
        shuffle: Whether keys are computed in another order than queries, so that they have other company.
        queue: Keys of earlier steps to tell an image's own key from.
        slowness: What the encoder of keys keeps of itself at each step.
        temperature: By which products of codes are divided.
        hidden: As in ``view_of``.
        noise: As in ``view_of``.
        compare_from: First step at which keys are computed in a new company too.

    Yields:
        Step, loss, the share of queries whose own key is nearest of all, and the share when the same keys are computed
        in a new company (NaN before ``compare_from``).
    """
    slow = copy.deepcopy(encoder)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=lr)
    source, shuffles = generator(seed, "batches"), generator(seed, "shuffles")
    past = normalize(torch.randn(queue, CODE_SIZE, generator=source), dim=1)
    for step in range(steps):
        picked = images[torch.randperm(len(images), generator=source)[:batch]]
        asked, given = (view_of(picked, source, hidden=hidden, noise=noise) for _ in range(2))
        with torch.no_grad():
            for own, fast in zip(slow.parameters(), encoder.parameters(), strict=True):
                own.lerp_(fast, 1 - slowness)
            orders = [torch.randperm(batch, generator=shuffles) for _ in range(2)]
            keys = _in_order(slow, given, orders[0] if shuffle else torch.arange(batch))
            others = _in_order(slow, given, orders[1]) if step >= compare_from else None
        queries = encoder(asked)
        scores = _scores(queries, keys, past) / temperature
        loss = cross_entropy(scores, torch.zeros(batch, dtype=torch.int64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moved = math.nan if others is None else _nearest(_scores(queries.detach(), others, past))
        yield step, loss.item(), _nearest(scores.detach()), moved
        past = torch.cat([keys, past])[:queue]


def _in_order(encoder: nn.Module, x: Tensor, order: Tensor) -> Tensor:
    """Return codes of rows that are computed in another order."""
    codes: Tensor = encoder(x[order])
    return torch.empty_like(codes).index_copy_(0, order, codes)


def _scores(queries: Tensor, keys: Tensor, past: Tensor) -> Tensor:
    """Return products (N, 1 + queue) of queries with their own key and with those of earlier steps."""
    return torch.cat([(queries * keys).sum(1, keepdim=True), queries @ past.T], 1)


def _nearest(scores: Tensor) -> float:
    """Return the share of rows whose first score is larger than all others: equal ones do not count."""
    return float((scores[:, 0] > scores[:, 1:].amax(1)).double().mean())


def probe(encoder: Encoder, x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, *, classes: int) -> float:
    """Return the test accuracy of a linear map fitted to the features by least squares, with a ridge of 1.

    Args:
        encoder: Left as it was; norms take the statistics of each of the two sets.
        x: Training inputs (N, F).
        y: Their labels.
        x_test: Test inputs (M, F).
        y_test: Their labels.
        classes: Number of classes.
    """
    mode = encoder.training
    encoder.eval()
    with torch.no_grad():
        train, test = encoder.features(x).double(), encoder.features(x_test).double()
    encoder.train(mode)
    spread, centre = train.std(0) + 1e-3, train.mean(0)
    design, there = (
        torch.cat([(part - centre) / spread, torch.ones(len(part), 1, dtype=part.dtype)], 1) for part in (train, test)
    )
    ridge = torch.eye(design.shape[1], dtype=design.dtype)
    fitted = torch.linalg.solve(design.T @ design + ridge, design.T @ one_hot(y, classes).to(design.dtype))
    return float((there @ fitted).argmax(1).eq(y_test).double().mean())
