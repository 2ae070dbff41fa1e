"""Set-ups without a defect that resemble one."""

import torch
from torch import nn
from torch.nn import functional as F

from .companions import ema, mlp, small_cnn
from .kit import classifier, cross_entropy, healthy, images, ns, run, sgd, tokens, train, vectors, waves
from .language_models import GPT, next_token
from .residual_networks import ResNet, conv_of


@healthy()
def ema_of_the_state_dict():
    """EMA of weights and buffers alike with a decay of .9 over 120 steps: the average has long forgotten its start."""
    return ema(0.9, buffers="average", shift=2.0)


@healthy()
def triplets():
    """Triplet loss: anchor, positive and negative in three calls of one network, all of the same distribution."""
    net = small_cnn(8, 16).train()

    def data(seed):
        x, y = (torch.cat(part) for part in zip(*images(16, 32, seed=seed), strict=True))
        by_class = [x[y == c] for c in range(4)]
        draw = torch.Generator().manual_seed(seed)
        rows = []
        for _ in range(8):
            a = torch.randint(4, (32,), generator=draw)
            b = (a + torch.randint(1, 4, (32,), generator=draw)) % 4
            pick = torch.randint(60, (3, 32), generator=draw).tolist()
            chosen = [
                [by_class[c][k] for c, k in zip(w.tolist(), p, strict=True)]
                for w, p in zip((a, a, b), pick, strict=True)
            ]
            rows.append(tuple(torch.stack(part) for part in chosen))
        return rows

    def loss_fn(model, batch):
        anchor, near, far = (model(part) for part in batch)
        return F.triplet_margin_loss(anchor, near, far)

    loader, held, opt = data(1), data(2), torch.optim.Adam(net.parameters(), 2e-3)
    train(net, loss_fn, loader, opt, 60)
    return ns.Case(net, loss_fn, loader, opt, held)


@healthy()
def square_sequences():
    """Convolutions over time whose 16 channels happen to be as many as the time steps."""
    net = nn.Sequential(
        nn.Conv1d(1, 16, 5, 4, 2), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 3, padding=1), nn.BatchNorm1d(16),
        nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    return classifier(net, waves, steps=80, lr=0.02)


@healthy()
def fix_match():
    """FixMatch: labelled images and unlabelled ones in one pass, weak and strong noise, pseudo-labels above .95."""

    def loss_fn(model, batch):
        x, y = batch
        half = len(x) // 2
        weak = x + 0.05 * torch.randn_like(x)
        strong = x[half:] + 0.4 * torch.randn_like(x[half:])
        scores = model(torch.cat([weak, strong]))
        known, soft, hard = scores[:half], scores[half : len(x)].detach().softmax(1), scores[len(x) :]
        sure, guess = soft.max(1)
        unlabelled = (F.cross_entropy(hard, guess, reduction="none") * (sure > 0.95)).mean()
        return F.cross_entropy(known, y[:half]) + unlabelled

    net = small_cnn(8).train()
    loader, held, opt = images(seed=1), images(seed=2), sgd(net, 0.02)
    train(net, loss_fn, loader, opt, 80)
    return ns.Case(net, loss_fn, loader, opt, held, eval_loss_fn=cross_entropy)


@healthy()
def perceptual_loss():
    """Super-resolution with a perceptual loss: gradients flow through a trained network in eval mode."""
    judge = classifier(small_cnn(8), steps=60).model.eval().requires_grad_(False)
    net = nn.Sequential(
        nn.Upsample(scale_factor=2), conv_of(3, 16), nn.BatchNorm2d(16), nn.PReLU(), conv_of(16, 16),
        nn.BatchNorm2d(16), nn.PReLU(), nn.Conv2d(16, 3, 3, padding=1),
    ).train()  # fmt: skip

    def loss_fn(model, batch):
        sharp = F.avg_pool2d(batch[0], 3, 1, 1)
        made = model(F.avg_pool2d(sharp, 2))
        return F.mse_loss(made, sharp) + 0.1 * F.mse_loss(judge[:6](made), judge[:6](sharp))

    loader, held, opt = images(seed=1), images(seed=2), torch.optim.Adam(net.parameters(), 3e-3)
    train(net, loss_fn, loader, opt, 90)
    return ns.Case(net, loss_fn, loader, opt, held), [judge]


@healthy()
def new_residual_network_from_zero():
    """A ResNet just made whose last gain of each block is zero."""
    net = ResNet((1, 1, 1), zero_init=True).train()
    return ns.Case(net, cross_entropy, images(seed=1), sgd(net), images(seed=2))


@healthy()
def new_gpt():
    """A GPT just made: layer norms of one, small output projections."""
    net = GPT(nn.LayerNorm).train()
    return ns.Case(
        net, next_token, tokens(seed=1), torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.0), tokens(seed=2)
    )


@healthy()
def raw_bytes():
    """Images of 0 to 255 that nobody scaled, a batch norm first in the network instead."""
    net = nn.Sequential(nn.BatchNorm2d(3), *small_cnn(8))

    def data(batches=8, size=32, seed=0):
        return [((x * 40 + 128).clamp(0, 255).round(), y) for x, y in images(batches, size, seed=seed)]

    return classifier(net, data, steps=120, lr=0.02)


@healthy()
def monte_carlo_dropout():
    """Dropout that stays on in evaluation on purpose, after the last norm."""

    class Always(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.2, training=True)

    layers = list(mlp())
    net = nn.Sequential(*layers[:-1], Always(), layers[-1])
    return classifier(net, vectors, steps=80, lr=0.03)


@healthy()
def validation_in_the_step():
    """The step validates every third time in eval mode under no_grad, and goes back to train mode."""
    net = small_cnn(8).train()
    loader, held, opt, count = images(seed=1), images(seed=2), sgd(net, 0.02), [0]

    def step(model, batch):
        opt.zero_grad()
        cross_entropy(model, batch).backward()
        opt.step()
        count[0] += 1
        if count[0] % 3 == 0:
            model.eval()
            with torch.no_grad():
                model(held[0][0])
            model.train()

    run(step, net, loader, 80)
    return ns.Case(net, cross_entropy, loader, opt, held, step=step)
