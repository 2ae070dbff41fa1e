"""Training loops: accumulation, mixed precision, checkpointing, sharpness, mixing, quantisation."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .companions import small_cnn
from .kit import classifier, cross_entropy, healthy, images, ns, run, sgd, train
from .language_models import GPT, language_model
from .residual_networks import ResNet


def accumulation(net, micro, parts=4, steps=40, lr=0.03):
    """Return a loop that accumulates the gradients of several micro-batches."""
    opt = sgd(net, lr)

    def step(model, batch):
        opt.zero_grad()
        for x, y in zip(*(part.split(micro) for part in batch), strict=True):
            (F.cross_entropy(model(x), y) * len(x) / len(batch[0])).backward()
        opt.step()

    loader, held = images(8, micro * parts, seed=1), images(8, micro * parts, seed=2)
    net.train()
    run(step, net, loader, steps)
    return ns.Case(net, cross_entropy, loader, opt, held, step=step)


@healthy()
def accumulation_group_norm():
    """Gradients accumulated over four micro-batches of 2, GroupNorm."""
    return accumulation(ResNet((1, 1), width=16, norm=lambda width: nn.GroupNorm(4, width)), 2, lr=0.02)


@healthy()
def accumulation_batch_norm():
    """Gradients accumulated over two micro-batches of 32 images, batch norm."""
    return accumulation(small_cnn(8), 32, 2, steps=60)


@healthy()
def mixed_precision():
    """bf16 autocast in training and evaluation, statistics in float32."""

    def loss_fn(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(batch[0])
        return F.cross_entropy(scores.float(), batch[1])

    return classifier(ResNet((1, 1)), loss_fn=loss_fn, steps=60, lr=0.03)


class CheckpointedGPT(GPT):
    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = checkpoint(block, x, use_reentrant=False) if self.training else block(x)
        return self.lm_head(self.ln_f(x))


@healthy()
def checkpointed_transformer():
    """Activation checkpointing of transformer blocks, layer norm."""
    return language_model(CheckpointedGPT(nn.LayerNorm))


def set_momentum(net, factor):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1 * factor


@healthy()
def sharpness_aware():
    """SAM: the second pass at the perturbed weights with momentum 0, so that it leaves the statistics alone."""
    net = small_cnn(8).train()
    opt = sgd(net, 0.03)

    def step(model, batch):
        opt.zero_grad()
        cross_entropy(model, batch).backward()
        with torch.no_grad():
            scale = 0.05 / (sum(p.grad.square().sum() for p in model.parameters()).sqrt() + 1e-12)
            moves = [(p, p.grad * scale) for p in model.parameters()]
            for p, move in moves:
                p.add_(move)
        opt.zero_grad()
        set_momentum(model, 0)
        cross_entropy(model, batch).backward()
        set_momentum(model, 1)
        with torch.no_grad():
            for p, move in moves:
                p.sub_(move)
        opt.step()

    loader, held = images(seed=1), images(seed=2)
    run(step, net, loader, 60)
    return ns.Case(net, cross_entropy, loader, opt, held, step=step)


@healthy()
def mixup():
    """Mixup and label smoothing in training, plain cross-entropy in evaluation, one-cycle schedule."""

    def loss_fn(model, batch):
        x, y = batch
        share, other = torch.distributions.Beta(0.2, 0.2).sample(), torch.randperm(len(x))
        scores = model(share * x + (1 - share) * x[other])
        return share * F.cross_entropy(scores, y, label_smoothing=0.1) + (1 - share) * F.cross_entropy(
            scores, y[other], label_smoothing=0.1
        )

    net = ResNet((1, 1, 1)).train()
    loader, held, opt = images(seed=1), images(seed=2), sgd(net, 0.03)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 0.05, total_steps=90)

    def step(model, batch):
        opt.zero_grad()
        loss_fn(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        opt.step()

    for _ in range(10):
        for batch in loader:
            step(net, batch)
            schedule.step()
    return ns.Case(net, loss_fn, loader, opt, held, step=step, eval_loss_fn=cross_entropy)


class FakeQuantize(nn.Module):
    """Rounds to eight bits within a range that is observed in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                fresh = self.high == self.low
                self.low.copy_(torch.where(fresh, x.min(), self.low.lerp(x.min(), 0.1)))
                self.high.copy_(torch.where(fresh, x.max(), self.high.lerp(x.max(), 0.1)))
        scale = ((self.high - self.low) / 255).clamp(min=1e-8).item()
        return torch.fake_quantize_per_tensor_affine(x, scale, round(-self.low.item() / scale), 0, 255)


@healthy(NS130="ranges of the fake quantisation are observed in training: evaluation differs from training by design")
def quantisation_aware():
    """Quantisation-aware training: activations rounded to eight bits within moving ranges, batch norm."""
    layers = []
    for layer in small_cnn(8):
        layers += [layer, FakeQuantize()] if isinstance(layer, nn.ReLU) else [layer]
    return classifier(nn.Sequential(*layers), steps=90, lr=0.02)


@healthy()
def compiled_wrapper():
    """The network in a wrapper as DistributedDataParallel has it: everything under ``module.``."""

    class Wrapped(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            return self.module(*inputs)

    return classifier(Wrapped(ResNet((1, 1))), steps=70, lr=0.03)


@healthy()
def cosine_restart_no_eval():
    """Batch-norm network without optimizer and evaluation data given: a model and a loss alone."""
    net = small_cnn(8).train()
    loader, opt = images(seed=1), sgd(net, 0.03)
    train(net, cross_entropy, loader, opt, 60)
    return ns.Case(net, cross_entropy, loader)


@healthy()
def new_network():
    """A ResNet just made: no step of training yet."""
    net = ResNet((1, 1, 1)).train()
    return ns.Case(net, cross_entropy, images(seed=1), sgd(net), images(seed=2))


@healthy()
def new_dcgan_norms():
    """A network just made, its gains drawn from N(1, .02)."""
    net = small_cnn(8).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    return ns.Case(net, cross_entropy, images(seed=1), sgd(net), images(seed=2))


@healthy()
def overfitted():
    """A network that has learned 64 images by heart: its evaluation loss is high by generalisation alone."""
    net, loader, held = small_cnn(16).train(), images(2, 32, seed=1, classes=8), images(8, 32, seed=2, classes=8)
    net[-1] = nn.Linear(32, 8)
    opt = sgd(net, 0.05)
    train(net, cross_entropy, loader, opt, 100)
    return ns.Case(net, cross_entropy, loader, opt, held)
