"""Self-supervised views, test-time adaptation, meta-learning."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from .companions import mlp, small_cnn
from .kit import classifier, healthy, images, ns, run, sgd, train


def two_views(x):
    return x + 0.3 * torch.randn_like(x), (x + 0.3 * torch.randn_like(x)).flip(-1)


@healthy()
def simclr():
    """SimCLR: both views in one pass, projector with batch norm, temperature."""
    net = nn.Sequential(small_cnn(8, 32), mlp(32, 32, 16))

    def loss_fn(model, batch):
        z = F.normalize(model(torch.cat(two_views(batch[0]))), dim=1)
        scores = (z @ z.T / 0.2).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
        half = len(z) // 2
        return F.cross_entropy(scores, torch.cat([torch.arange(half, 2 * half), torch.arange(half)]))

    net.train()
    return classifier(net, loss_fn=loss_fn, steps=60, lr=0.02)


@healthy()
def byol():
    """BYOL: online network and predictor, target of averaged weights in train mode as in the paper's code."""
    online, predictor = nn.Sequential(small_cnn(8, 32), mlp(32, 32, 16)), mlp(16, 32, 16)
    target = copy.deepcopy(online).requires_grad_(False)
    net = nn.ModuleDict({"online": online, "predictor": predictor})
    opt = sgd(net, 0.03)

    def loss_fn(model, batch):
        a, b = two_views(batch[0])
        total = 0
        for first, second in ((a, b), (b, a)):
            p = model["predictor"](model["online"](first))
            with torch.no_grad():
                z = target(second)
            total = total + 2 - 2 * F.cosine_similarity(p, z).mean()
        return total

    def step(model, batch):
        opt.zero_grad()
        loss_fn(model, batch).backward()
        opt.step()
        with torch.no_grad():
            for a, b in zip(target.parameters(), online.parameters(), strict=True):
                a.lerp_(b, 0.05)

    loader = images(seed=1)
    net.train(), target.train()
    run(step, net, loader, 50)
    return ns.Case(net, loss_fn, loader, opt, step=step), [target]


@healthy()
def simsiam():
    """SimSiam: the two views in two calls of one network, stop-gradient."""
    net = nn.ModuleDict({"encoder": nn.Sequential(small_cnn(8, 32), mlp(32, 32, 32)), "predictor": mlp(32, 16, 32)})

    def loss_fn(model, batch):
        za, zb = (model["encoder"](view) for view in two_views(batch[0]))
        pa, pb = model["predictor"](za), model["predictor"](zb)
        return -(F.cosine_similarity(pa, zb.detach()).mean() + F.cosine_similarity(pb, za.detach()).mean()) / 2

    net.train()
    return classifier(net, loss_fn=loss_fn, steps=60, lr=0.03)


ON_PURPOSE = "evaluation depends on the batch: test-time adaptation means it"


@healthy(NS129=ON_PURPOSE)
def tent():
    """TENT: a trained network adapted to shifted images by entropy, batch statistics only, gains and shifts learn."""
    net = classifier(small_cnn(), steps=80, lr=0.03).model
    net.train().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(True)
            module.track_running_stats, module.running_mean, module.running_var = False, None, None

    def loss_fn(model, batch):
        scores = model(batch[0])
        return -(scores.softmax(1) * scores.log_softmax(1)).sum(1).mean()

    loader = images(seed=5, shift=1.0, scale=1.5)
    opt = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-3)
    train(net, loss_fn, loader, opt, 8)
    return ns.Case(net, loss_fn, loader, opt)


def maml(norm=nn.BatchNorm1d, track=False):
    """Return MAML over sine-like tasks, its inner step by functional_call."""
    net = mlp(2, 32, 1, norm).train()

    def task(draw):
        slope, phase = torch.rand(2, generator=draw) * 3
        x = torch.rand(40, 2, generator=draw) * 4 - 2
        return x, torch.sin(slope * x[:, :1] + phase) + 0.1 * x[:, 1:]

    def data(seed):
        draw = torch.Generator().manual_seed(seed)
        return [[task(draw) for _ in range(4)] for _ in range(8)]

    def loss_fn(model, batch):
        total = 0
        for x, y in batch:
            weights = dict(model.named_parameters())
            inner = F.mse_loss(torch.func.functional_call(model, weights, (x[:20],)), y[:20])
            slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            fast = {name: w - 0.05 * s for (name, w), s in zip(weights.items(), slopes, strict=True)}
            total = total + F.mse_loss(torch.func.functional_call(model, fast, (x[20:],)), y[20:])
        return total / len(batch)

    loader, held = data(1), data(2)
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    train(net, loss_fn, loader, opt, 50)
    return ns.Case(net, loss_fn, loader, opt, held)


@healthy()
def maml_layer_norm():
    """MAML with layer norm, second order."""
    return maml(nn.LayerNorm)


@healthy(NS129="evaluation depends on the batch: MAML's norms are transductive on purpose")
def maml_transductive():
    """MAML as in its code: batch norm without running statistics, in training and evaluation."""
    return maml(lambda width: nn.BatchNorm1d(width, track_running_stats=False))


@healthy()
def prototypical():
    """Prototypical networks: episodes of four ways, support and query in one pass."""
    net = small_cnn(8, 16).train()

    def data(seed):
        x, y = (torch.cat(part) for part in zip(*images(16, 32, seed=seed), strict=True))
        rows = [(y == c).nonzero().flatten() for c in range(4)]
        episodes = []
        for k in range(10):
            chosen = torch.cat([row[k * 8 : k * 8 + 8] for row in rows])
            episodes.append(x[chosen].view(4, 8, *x.shape[1:]))
        return episodes

    def loss_fn(model, episode):
        z = model(episode.flatten(0, 1)).view(4, 8, -1)
        centres, queries = z[:, :4].mean(1), z[:, 4:].flatten(0, 1)
        return F.cross_entropy(-(torch.cdist(queries, centres) ** 2) / 8, torch.arange(4).repeat_interleave(4))

    loader, held = data(1), data(2)
    opt = torch.optim.Adam(net.parameters(), 2e-3)
    train(net, loss_fn, loader, opt, 70)
    return ns.Case(net, loss_fn, loader, opt, held)
