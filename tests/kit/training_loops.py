"""Training loops of many kinds, each of which trains a fresh net with probes or without."""

import random
import warnings
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kit import varied_networks as nets
from kit.traces import fingerprint
from normscope.probes import ProbeWarning, Recorder

STREAMING = ["gradient_flow", "activation_distribution"]
COSTLY = ["covariate_shift", "landscape", "curvature", "descent", "interaction"]


def seed_all():
    """Set every random stream that a net of these tests draws from."""
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)


class Loop:
    """A training loop of some kind: ``run`` trains a fresh net, with a recorder if probes are given."""

    net, lr, size = "dropout", 0.05, 16

    def build(self):
        model = nets.make(self.net)
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], self.lr)

    def loss_fn(self, model, batch):
        return nets.loss_fn(model, batch)

    def options(self):
        return {}

    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        self.loss_fn(model, batch).backward()
        optimizer.step()

    def batches(self, steps):
        return nets.batches(self.net, steps, size=self.size)

    def run(self, codes=(), *, steps=6, every=2):
        """Train, and return what training left behind, and the records."""
        model, optimizer = self.build()
        seed_all()
        self.scope = scope = Recorder(model, self.loss_fn, optimizer, codes, every=every, **self.options())
        with warnings.catch_warnings():
            warnings.simplefilter("error", ProbeWarning)
            for batch in self.batches(steps):
                with scope.step(batch):
                    self.block(scope, model, optimizer, batch)
        return fingerprint(model=model, optimizer=optimizer), scope.drain()


class Accumulating(Loop):
    """Three micro-batches a step, with draws of the loop's own between them."""

    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        parts = [(batch[0][i::3], batch[1][i::3]) for i in range(3)]
        for part in parts:
            torch.rand(2)
            scope.micro_batch(part)
            (self.loss_fn(model, part) / 3).backward()
        optimizer.step()


class Autocast(Loop):
    """bfloat16 around the forward pass only, as the manual says."""

    net = "residual"

    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss_fn(model, batch)
        loss.backward()
        optimizer.step()


class AutocastAroundAll(Autocast):
    def run(self, *args, **options):
        with torch.autocast("cpu", torch.bfloat16):
            return super().run(*args, **options)


class Scaled(Loop):
    """A gradient scaler, whose scale must not be seen in any gradient."""

    def build(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
        return super().build()

    def options(self):
        return {"scaler": self.scaler}

    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        self.scaler.scale(self.loss_fn(model, batch)).backward()
        self.scaler.step(optimizer)
        self.scaler.update()


class Clipped(Loop):
    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        self.loss_fn(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()


class TwoOptimizers(Loop):
    net = "shared"  # with a frozen weight, a weight used twice, and a module that is not used

    def build(self):
        model = nets.make(self.net)
        parts = [p for p in model.parameters() if p.requires_grad]
        return model, [torch.optim.SGD(parts[:4], 0.1, momentum=0.9), torch.optim.Adam(parts[4:], 0.01)]

    def block(self, scope, model, optimizer, batch):
        model.zero_grad()
        self.loss_fn(model, batch).backward()
        for one in optimizer:
            one.step()


class TwoLosses(Loop):
    """Two losses by two backward passes; the scope is told their sum."""

    def loss_fn(self, model, batch):
        y = model(batch[0])
        return F.cross_entropy(y, batch[1]) + 0.1 * y.square().mean()

    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        y = model(batch[0])
        F.cross_entropy(y, batch[1]).backward(retain_graph=True)
        (0.1 * y.square().mean()).backward()
        optimizer.step()


class Uneven(Loop):
    """Two losses in one, parameter groups with rates, momentum and decay of their own, widths that all differ."""

    net, size = "uneven", 22

    def build(self):
        model = nets.make(self.net)
        weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        rest = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        groups = [
            {"params": weights, "lr": 0.2, "momentum": 0.8, "weight_decay": 0.01},
            {"params": rest, "lr": 0.05},
        ]
        return model, torch.optim.SGD(groups, 0.1)

    def loss_fn(self, model, batch):
        y = model(batch[0])
        return F.cross_entropy(y, batch[1]) + 0.1 * y.square().mean()


class UnevenImages(Loop):
    """Images, kernels and strides that are not square, dropout, Adam with decay."""

    net, size, lr = "uneven_cnn", 18, 0.01


class UnevenParts(Uneven):
    """Two micro-batches of different sizes, with shares to match."""

    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        for rows in (slice(0, 13), slice(13, None)):
            part = batch[0][rows], batch[1][rows]
            share = len(part[0]) / self.size
            scope.micro_batch(part, share)
            (share * self.loss_fn(model, part)).backward()
        optimizer.step()


def train(name, attach=lambda model, optimizer: None, *, steps=20):
    """Train a net whose modules and parameters carry hooks of the user's; return all that training leaves behind."""
    model = nets.make(name)
    hooked = []
    for key, module in model.named_modules():
        module.register_forward_hook(lambda *_, key=key: hooked.append(key) and None)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.register_hook(lambda _: hooked.append("gradient") and None)
    optimizer = torch.optim.AdamW(parameters, 1e-2)
    seed_all()
    scope = attach(model, optimizer)
    losses = []
    for batch in nets.batches(name, steps):
        with scope.step(batch) if scope is not None else nullcontext():
            optimizer.zero_grad()
            loss = nets.loss_fn(model, batch)
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    return fingerprint(model=model, optimizer=optimizer, losses=losses, hooked=hooked)


def values(records, *names):
    """Return {(probe, step, site, name): value} of all records, or of those with these names."""
    return {(r.probe, r.step, r.site, r.name): r.value for r in records if not names or r.name in names}
