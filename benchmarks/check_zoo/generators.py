"""Generative networks: GANs, auto-encoders, diffusion, autoregressive pixels."""

import torch
from torch import nn
from torch.nn import functional as F

from .kit import healthy, images, ns, run

BCE = F.binary_cross_entropy_with_logits
TWO_STREAMS = "real and generated images pass the norms in two calls, and the running statistics are of neither"


def dcgan_init(module):
    """Draw as the DCGAN tutorial does."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class Generator(nn.Module):
    def __init__(self, width=16, latent=16):
        super().__init__()
        self.latent = latent
        self.main = nn.Sequential(
            nn.ConvTranspose2d(latent, width, 4, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
            nn.ConvTranspose2d(width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
            nn.Conv2d(width, 3, 3, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, count):
        return self.main(torch.randn(count, self.latent, 1, 1))


class Discriminator(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True),
            nn.Conv2d(width, 2 * width, 3, 1, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2, True),
            nn.Conv2d(2 * width, 1, 4),
        )  # fmt: skip

    def forward(self, x):
        return self.main(x).flatten()


def dcgan(side, joined=False, steps=60, batches=8):
    """Return the loop of the DCGAN tutorial, seen from one side."""
    g, d = Generator().apply(dcgan_init), Discriminator().apply(dcgan_init)
    opt_g = torch.optim.Adam(g.parameters(), 2e-3, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(d.parameters(), 2e-3, betas=(0.5, 0.999))

    def loss_d(model, batch):
        real, fake = batch[0], g(len(batch[0])).detach()
        if joined:
            a, b = model(torch.cat([real, fake])).split(len(real))
        else:
            a, b = model(real), model(fake)
        return BCE(a, torch.ones_like(a)) + BCE(b, torch.zeros_like(b))

    def loss_g(model, batch):
        scores = d(model(len(batch[0])))
        return BCE(scores, torch.ones_like(scores))

    def step(model, batch):
        opt_d.zero_grad()
        loss_d(d, batch).backward()
        opt_d.step()
        opt_g.zero_grad()
        loss_g(g, batch).backward()
        opt_g.step()

    data = images(batches, 32, px=8, seed=1, scale=0.5)
    g.train(), d.train()
    run(step, None, data, steps)
    everything = [g, d, opt_g, opt_d]
    if side == "d":
        return ns.Case(d, loss_d, data, opt_d, step=step), everything
    return ns.Case(g, loss_g, data, opt_g, step=step), everything


@healthy(NS112=TWO_STREAMS, NS135=TWO_STREAMS, NS136=TWO_STREAMS)
def dcgan_discriminator():
    """DCGAN loop seen from the discriminator, real and generated images in two calls."""
    return dcgan("d")


@healthy()
def dcgan_generator():
    """DCGAN loop seen from the generator, the discriminator in its loss."""
    return dcgan("g")


class Critic(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 3, 2, 1), norm(32), nn.LeakyReLU(0.2),
            nn.Conv2d(32, 32, 3, 1, 1), norm(32), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(32 * 4, 1),
        )  # fmt: skip

    def forward(self, x):
        return self.main(x).flatten()


def wgan_gp(norm):
    """Return the critic's side of WGAN-GP: a penalty on the gradient by the input of each sample."""
    g, d = Generator(), Critic(norm)
    opt_g = torch.optim.Adam(g.parameters(), 1e-3, betas=(0.0, 0.9))
    opt_d = torch.optim.Adam(d.parameters(), 1e-3, betas=(0.0, 0.9))

    def loss_d(model, batch):
        real = batch[0]
        with torch.no_grad():
            fake = g.eval()(len(real))
            g.train()
        mixed = torch.lerp(real, fake, torch.rand(len(real), 1, 1, 1)).requires_grad_()
        (slope,) = torch.autograd.grad(model(mixed).sum(), mixed, create_graph=True)
        return model(fake).mean() - model(real).mean() + 10 * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()

    def step(model, batch):
        for _ in range(2):
            opt_d.zero_grad()
            loss_d(d, batch).backward()
            opt_d.step()
        opt_g.zero_grad()
        (-d(g(len(batch[0]))).mean()).backward()
        opt_g.step()

    data = images(8, 16, px=8, seed=1, scale=0.5)
    g.train(), d.train()
    run(step, None, data, 30)
    return ns.Case(d, loss_d, data, opt_d, step=step), [g, d, opt_g, opt_d]


@healthy()
def wgan_gp_layer_norm():
    """WGAN-GP: critic with layer norm (GroupNorm of one group), penalty on input gradients."""
    return wgan_gp(lambda width: nn.GroupNorm(1, width))


class Translator(nn.Sequential):
    def __init__(self, width=12):
        def block():
            return [nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(width), nn.ReLU()]

        super().__init__(
            nn.Conv2d(3, width, 3, padding=1), nn.InstanceNorm2d(width), nn.ReLU(), *block(), *block(),
            nn.Conv2d(width, 3, 3, padding=1), nn.Tanh(),
        )  # fmt: skip


@healthy()
def cyclegan():
    """CycleGAN: two generators with instance norm, a patch discriminator, identity and cycle losses, batch of one."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.ab, self.ba = Translator(), Translator()

        def forward(self, a, b):
            return self.ab(a), self.ba(b)

    net = Both()
    patch = nn.Sequential(
        nn.Conv2d(3, 12, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(12, 24, 3, 1, 1), nn.InstanceNorm2d(24),
        nn.LeakyReLU(0.2), nn.Conv2d(24, 1, 3),
    )  # fmt: skip
    opt = torch.optim.Adam(net.parameters(), 1e-3, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(patch.parameters(), 1e-3, betas=(0.5, 0.999))

    def loss_fn(model, batch):
        a, b = batch
        fake_b, fake_a = model(a, b)
        cycle = F.l1_loss(model.ba(fake_b), a) + F.l1_loss(model.ab(fake_a), b)
        scores = patch(fake_b)
        return 10 * cycle + 5 * F.l1_loss(model.ab(b), b) + F.mse_loss(scores, torch.ones_like(scores))

    def step(model, batch):
        opt.zero_grad()
        loss_fn(net, batch).backward()
        opt.step()
        opt_d.zero_grad()
        real, fake = patch(batch[1]), patch(net.ab(batch[0]).detach())
        (F.mse_loss(real, torch.ones_like(real)) + F.mse_loss(fake, torch.zeros_like(fake))).backward()
        opt_d.step()

    def data(seed):
        sides = images(12, 1, px=8, seed=seed, scale=0.4), images(12, 1, px=8, seed=seed + 50, scale=0.4, shift=0.2)
        return [(a[0], b[0]) for a, b in zip(*sides, strict=True)]

    loader, held = data(1), data(2)
    net.train(), patch.train()
    run(step, net, loader, 40)
    return ns.Case(net, loss_fn, loader, opt, held, step=step), [patch, opt_d]


class ClassNorm(nn.Module):
    """Conditional batch norm: gains and shifts by class."""

    def __init__(self, width, classes=4):
        super().__init__()
        self.bn, self.embed = nn.BatchNorm2d(width, affine=False), nn.Embedding(classes, 2 * width)
        self.embed.weight.data[:, :width].normal_(1, 0.02)
        self.embed.weight.data[:, width:].zero_()

    def forward(self, x, label):
        gain, shift = self.embed(label).chunk(2, 1)
        return self.bn(x) * gain[..., None, None] + shift[..., None, None]


class ClassGenerator(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.first, self.n1 = nn.Linear(12, width * 16), ClassNorm(width)
        self.conv, self.n2 = nn.Conv2d(width, width, 3, padding=1), ClassNorm(width)
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, label):
        x = self.first(torch.randn(len(label), 12)).view(len(label), -1, 4, 4)
        x = F.interpolate(F.relu(self.n1(x, label)), scale_factor=2)
        return torch.tanh(self.out(F.relu(self.n2(self.conv(x), label))))


@healthy()
def conditional_batch_norm():
    """BigGAN-like: generator with conditional batch norm, projection discriminator with spectral norm, hinge loss."""
    sn = nn.utils.parametrizations.spectral_norm
    g = ClassGenerator()
    body = nn.Sequential(sn(nn.Conv2d(3, 16, 3, 2, 1)), nn.ReLU(), sn(nn.Conv2d(16, 16, 3, 2, 1)), nn.ReLU())
    d = nn.ModuleDict({"body": body, "score": sn(nn.Linear(16, 1)), "embed": nn.Embedding(4, 16)})
    opt_g, opt_d = (torch.optim.Adam(m.parameters(), 1e-3, betas=(0.0, 0.999)) for m in (g, d))

    def score(x, label):
        y = d["body"](x).sum((2, 3))
        return d["score"](y).squeeze(1) + (d["embed"](label) * y).sum(1)

    def loss_fn(model, batch):
        return -score(model(batch[1]), batch[1]).mean()

    def step(model, batch):
        opt_d.zero_grad()
        fake = g(batch[1]).detach()
        (F.relu(1 - score(*batch)).mean() + F.relu(1 + score(fake, batch[1])).mean()).backward()
        opt_d.step()
        opt_g.zero_grad()
        loss_fn(g, batch).backward()
        opt_g.step()

    data = images(8, 32, px=8, seed=1, scale=0.5)
    g.train(), d.train()
    run(step, g, data, 60)
    return ns.Case(g, loss_fn, data, opt_g, step=step), [d, opt_d]
