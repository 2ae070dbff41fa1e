"""Generative networks without an adversary: VAE and diffusion."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from .kit import healthy, images, ns, run, train
from .residual_networks import conv_of


class VAE(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.enc = nn.Sequential(
            conv_of(3, width, 2), nn.BatchNorm2d(width), nn.LeakyReLU(), conv_of(width, 2 * width, 2),
            nn.BatchNorm2d(2 * width), nn.LeakyReLU(), nn.Flatten(),
        )  # fmt: skip
        self.mu, self.logvar = nn.Linear(8 * width, 8), nn.Linear(8 * width, 8)
        self.lift = nn.Linear(8, 8 * width)
        self.dec = nn.Sequential(
            nn.Unflatten(1, (2 * width, 2, 2)), nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width),
            nn.LeakyReLU(), nn.ConvTranspose2d(width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.LeakyReLU(),
            nn.Conv2d(width, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, x):
        y = self.enc(x)
        mu, logvar = self.mu(y), self.logvar(y)
        return self.dec(self.lift(mu + torch.randn_like(mu) * (0.5 * logvar).exp())), mu, logvar


@healthy()
def vae():
    """Convolutional VAE with batch norm, noise drawn in both modes."""

    def loss_fn(model, batch):
        y, mu, logvar = model(batch[0])
        divergence = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1).mean()
        return F.mse_loss(y, batch[0], reduction="sum") / len(y) + divergence

    net, loader, held = VAE().train(), images(8, 32, seed=1), images(8, 32, seed=2)
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    train(net, loss_fn, loader, opt, 80)
    return ns.Case(net, loss_fn, loader, opt, held)


class TimeBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(16, width)
        self.norm2, self.conv2 = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight), nn.init.zeros_(self.conv2.bias)

    def forward(self, x, t):
        y = self.conv1(F.silu(self.norm1(x))) + self.time(t)[..., None, None]
        return x + self.conv2(F.silu(self.norm2(y)))


class Denoiser(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, width, 3, padding=1), nn.ModuleList(TimeBlock(width) for _ in range(3))
        self.norm, self.out = nn.GroupNorm(4, width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x, t):
        time = torch.cat(
            [torch.sin(t[:, None] * 2.0 ** torch.arange(8)), torch.cos(t[:, None] * 2.0 ** torch.arange(8))], 1
        )
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, time)
        return self.out(F.silu(self.norm(x)))


@healthy()
def diffusion():
    """DDPM: residual blocks with GroupNorm and time embedding, last convolutions from zero, EMA of the weights."""

    def loss_fn(model, batch):
        t = torch.rand(len(batch[0]))
        noise, angle = torch.randn_like(batch[0]), (1.57 * t)[:, None, None, None]
        return F.mse_loss(model(angle.cos() * batch[0] + angle.sin() * noise, t), noise)

    net, loader, held = Denoiser().train(), images(8, 16, seed=1, scale=0.5), images(8, 16, seed=2, scale=0.5)
    ema, opt = copy.deepcopy(net).eval().requires_grad_(False), torch.optim.Adam(net.parameters(), 2e-3)

    def step(model, batch):
        opt.zero_grad()
        loss_fn(model, batch).backward()
        opt.step()
        for a, b in zip(ema.parameters(), model.parameters(), strict=True):
            a.lerp_(b.detach(), 0.1)

    run(step, net, loader, 50)
    return ns.Case(net, loss_fn, loader, opt, held, step=step, averaged=ema)
