"""Defects in norm classes of the user's own, and in where norms are put."""

import torch
from torch import nn
from torch.nn import functional as F

from .companions import mlp
from .frozen import pretrained
from .kit import classifier, cross_entropy, images, ns, planted, run, sgd, train, vectors, waves
from .planted_statistics import FunctionalNorm, sorted_evaluation


class SwappedNorm(FunctionalNorm):
    """Updates and uses the right statistics, with the two modes exchanged."""

    def forward(self, x):
        if not self.training:
            mean, var = x.mean(0), x.var(0, unbiased=False)
        else:
            with torch.no_grad():
                self.running_mean.lerp_(x.mean(0), 0.1)
                self.running_var.lerp_(x.var(0), 0.1)
            mean, var = self.running_mean.clone(), self.running_var.clone()
        return (x - mean) / (var + 1e-5).sqrt() * self.weight + self.bias


@planted("NS129", "NS130")
def own_norm_with_swapped_modes():
    """A norm class whose modes are exchanged: running statistics in training, those of the batch in evaluation."""
    return sorted_evaluation(SwappedNorm, lr=0.01)


class RestlessNorm(FunctionalNorm):
    """Averages its statistics in each pass, of evaluation too."""

    def forward(self, x):
        with torch.no_grad():
            self.running_mean.lerp_(x.mean(0), 0.1)
            self.running_var.lerp_(x.var(0), 0.1)
        if self.training:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, 1e-5)
        mean, var = self.running_mean.clone(), self.running_var.clone()
        return (x - mean) / (var + 1e-5).sqrt() * self.weight + self.bias


@planted("NS130", "NS129", "NS106")
def own_norm_updates_in_evaluation():
    """A norm class that goes on averaging its statistics in evaluation."""
    return sorted_evaluation(RestlessNorm)


class BookNorm(nn.Module):
    """Batch norm over all but the channel; the moving mean is no buffer, the moving variance is forgotten."""

    def __init__(self, width):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(1, width, 1, 1)), nn.Parameter(torch.zeros(1, width, 1, 1))
        self.moving_mean = torch.zeros(1, width, 1, 1)

    def forward(self, x):
        if self.training:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
            self.moving_mean = 0.9 * self.moving_mean + 0.1 * mean.detach()
        else:
            mean, var = self.moving_mean, torch.ones(1)
        return self.gamma * (x - mean) / (var + 1e-5).sqrt() + self.beta


@planted("NS130", "NS102", "NS109")
def own_norm_forgets_the_variance():
    """A 2-D norm class (Dive into Deep Learning's) that divides by 1 in evaluation."""
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), BookNorm(12), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1),
        BookNorm(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    return classifier(net, steps=80, lr=0.03, scale=3.0)


@planted("NS133", "NS101")
def stem_thawed_each_epoch():
    """The first stage is frozen once, before training; the loop calls model.train() at each epoch."""
    net = pretrained().train()
    for part in (net.conv1, net.bn1, net.layers[0]):
        part.eval().requires_grad_(False)
    loader, held = images(8, 16, seed=11, scale=2.0, shift=1.0), images(8, 16, seed=12, scale=2.0, shift=1.0)
    opt, count = sgd(net, 0.005), [0]

    def step(model, batch):
        if count[0] % len(loader) == 0:
            model.train()
        count[0] += 1
        opt.zero_grad()
        cross_entropy(model, batch).backward()
        opt.step()

    return ns.Case(net, cross_entropy, loader, opt, held, step=step)


@planted("NS134")
def physics_with_batch_norm():
    """u' = cos x by autograd.grad of the summed outputs, with batch norm: the slope is of the whole batch."""

    def residual(model, x):
        x = x.clone().requires_grad_(True)
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return ((slope - torch.cos(x)) ** 2).mean()

    net = nn.Sequential(nn.Linear(1, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    net.train()
    opt, draw = torch.optim.Adam(net.parameters(), 3e-3), torch.Generator().manual_seed(1)
    loader, held = ([torch.rand(16, 1, generator=draw) * 6 - 3 for _ in range(8)] for _ in range(2))
    train(net, residual, loader, opt, 80)
    return ns.Case(net, residual, loader, opt, held)


class LSTMWithNorm(nn.Module):
    def __init__(self, steps=16, width=24):
        super().__init__()
        self.lstm, self.bn, self.out = nn.LSTM(4, width, batch_first=True), nn.BatchNorm1d(steps), nn.Linear(width, 4)

    def forward(self, x):
        y, _ = self.lstm(x.view(len(x), -1, 4))
        return self.out(F.relu(self.bn(y))).mean(1)


@planted("NS137")
def lstm_batch_norm_over_time():
    """BatchNorm1d of the sequence's length on the output (N, T, H) of an LSTM, then a linear layer."""
    net = LSTMWithNorm()
    return classifier(net, waves, steps=60, optimizer=torch.optim.Adam(net.parameters(), 5e-3))


@planted("NS120", "NS102")
def windows_in_order():
    """Windows of a slow series in the order of time, shuffle=False."""
    draw = torch.Generator().manual_seed(3)
    drift = torch.randn(64 * 24, 12, generator=draw).cumsum(0) * 0.05
    x = drift + torch.randn(64 * 24, 12, generator=draw)
    y = ((x - drift)[:, 0] > 0).long()
    rows = list(zip(x.split(64), y.split(64), strict=True))
    net = mlp(out=2).train()
    opt = sgd(net, 0.03)
    train(net, cross_entropy, rows[:20], opt, 100)
    return ns.Case(net, cross_entropy, rows[:20], opt, rows[20:])


@planted("NS135", "NS112", "NS102", NS120="batches of a task each are alike")
def tasks_in_turn():
    """Two tasks of unlike inputs through one trunk, a batch of each in turn, one optimizer step each."""

    class TwoTasks(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.heads = mlp(out=32), nn.ModuleList([nn.Linear(32, 4), nn.Linear(32, 4)])

        def forward(self, x, task):
            return self.heads[task](F.relu(self.trunk(x)))

    def data(seed):
        a, b = vectors(6, 64, seed=seed), vectors(6, 64, seed=seed + 20, scale=3.0, shift=3.0)
        return [(x, y, k) for pair in zip(a, b, strict=True) for k, (x, y) in enumerate(pair)]

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0], batch[2]), batch[1])

    net, loader = TwoTasks().train(), data(1)
    opt = sgd(net, 0.02)

    def step(model, batch):
        opt.zero_grad()
        loss_fn(model, batch).backward()
        opt.step()

    run(step, net, loader, 100)
    return ns.Case(net, loss_fn, loader, opt, data(2), step=step)
