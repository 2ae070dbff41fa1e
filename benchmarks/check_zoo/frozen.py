"""Pretrained networks of which a part is frozen, in the ways that public code has."""

import torch
from torch import nn

from .companions import small_cnn
from .kit import classifier, cross_entropy, healthy, images, ns, sgd, train
from .residual_networks import ResNet


class FrozenBatchNorm2d(nn.Module):
    """As detectron2's and torchvision's: statistics, gain and shift are buffers."""

    def __init__(self, bn):
        super().__init__()
        for name, value in (
            ("weight", bn.weight),
            ("bias", bn.bias),
            ("running_mean", bn.running_mean),
            ("running_var", bn.running_var),
        ):
            self.register_buffer(name, value.detach().clone())

    def forward(self, x):
        scale = (self.weight * (self.running_var + 1e-5).rsqrt()).view(1, -1, 1, 1)
        shift = self.bias.view(1, -1, 1, 1) - self.running_mean.view(1, -1, 1, 1) * scale
        return x * scale + shift


def with_frozen_norms(module):
    """Replace each batch norm by a frozen one."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child))
        else:
            with_frozen_norms(child)
    return module


def pretrained(net=None):
    """Return a network that has learned other images."""
    net = net or ResNet((1, 1, 1))
    return classifier(net, steps=80, lr=0.03, classes=6 if net.fc.out_features == 6 else 4, size=32).model


def fine_tune(net, batches=6, size=16, steps=40, lr=0.01, **options):
    """Return the set-up of a fine-tuning on other images, the modes as they are."""
    loader, held = images(batches, size, seed=11, scale=1.3, shift=0.2), images(6, size, seed=12, scale=1.3, shift=0.2)
    opt = sgd(net, lr)
    train(net, cross_entropy, loader, opt, steps)
    return ns.Case(net, cross_entropy, loader, opt, held, **options)


@healthy()
def detectron_frozen_norms():
    """Fine-tuning with detectron-like FrozenBatchNorm2d."""
    return fine_tune(with_frozen_norms(pretrained()).train())


@healthy()
def frozen_by_eval():
    """Backbone in eval mode and without gradient, a new head on it."""
    net = pretrained()
    net.train().requires_grad_(False)
    net.fc = nn.Linear(net.fc.in_features, 4)
    for part in (net.bn1, net.layers):
        part.eval()
    return fine_tune(net, lr=0.05)


@healthy()
def convolutions_frozen():
    """Convolutions without gradient; norms and head go on learning, statistics too."""
    net = pretrained().train()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.requires_grad_(False)
    return fine_tune(net, size=32, steps=60)


class NormEvalResNet(ResNet):
    """As MMEngine's ``norm_eval``: ``train()`` leaves the norms in eval mode."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


@healthy()
def norm_eval():
    """train() is overridden so that norms stay in eval mode (MMEngine's norm_eval); the step calls train()."""
    net = NormEvalResNet((1, 1, 1))
    net.load_state_dict(pretrained().state_dict())
    loader, held, opt = images(6, 16, seed=11), images(6, 16, seed=12), sgd(net, 0.01)

    def step(model, batch):
        model.train()
        opt.zero_grad()
        cross_entropy(model, batch).backward()
        opt.step()

    for batch in loader * 5:
        step(net, batch)
    return ns.Case(net, cross_entropy, loader, opt, held, step=step)


@healthy()
def small_data():
    """Fine-tuning on 48 images, norms in eval mode, decoupled rates for backbone and head."""
    net = pretrained().train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    loader, held = images(3, 16, seed=11), images(6, 16, seed=12)
    rest = [p for name, p in net.named_parameters() if not name.startswith("fc")]
    opt = torch.optim.AdamW(
        [{"params": rest, "lr": 1e-4}, {"params": net.fc.parameters(), "lr": 2e-3}], weight_decay=1e-4
    )
    train(net, cross_entropy, loader, opt, 24)
    return ns.Case(net, cross_entropy, loader, opt, held)


@healthy()
def adapted_statistics():
    """Domain adaptation by AdaBN: statistics recomputed on the new images, weights as they were."""
    net = pretrained().train()
    loader, held = images(8, 32, seed=11, shift=0.5), images(6, 32, seed=12, shift=0.5)
    torch.optim.swa_utils.update_bn(loader, net)
    opt = sgd(net, 0.002)
    train(net, cross_entropy, loader, opt, 30)
    return ns.Case(net, cross_entropy, loader, opt, held)


@healthy()
def frozen_stem():
    """The first two stages in eval mode and without gradient, later stages train with their norms."""
    net = pretrained().train()
    for part in (net.conv1, net.bn1, net.layers[0]):
        part.eval().requires_grad_(False)
    return fine_tune(net, batches=8, size=32, steps=60)


@healthy()
def linear_probe():
    """Linear probe on an encoder in eval mode, kept outside the model that trains."""
    encoder = classifier(small_cnn(), steps=60, lr=0.03).model.eval().requires_grad_(False)
    probe = nn.Sequential(nn.BatchNorm1d(24, affine=False), nn.Linear(24, 4)).train()

    def loss_fn(model, batch):
        with torch.no_grad():
            features = encoder[:-1](batch[0])
        return nn.functional.cross_entropy(model(features), batch[1])

    return classifier(probe, loss_fn=loss_fn, steps=80, lr=0.1), [encoder]
