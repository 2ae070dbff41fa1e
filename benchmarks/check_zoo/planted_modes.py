"""Defects of modes, of freezing and of second models, as users make them."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from .companions import distillation, ema, fed_avg, mean_teacher, q_learning, small_cnn
from .dense_prediction import DeeplySupervised, TorchvisionDetector, masks
from .frozen import pretrained
from .kit import classifier, cross_entropy, images, ns, planted, run, sgd, train
from .residual_networks import ResNet, timm_resnext


@planted("NS102", "NS109", "NS130", "NS133")
def forgot_train_after_validation():
    """The step validates every other time by model.eval(), and nobody calls model.train() again."""
    net, loader, held = small_cnn(8).train(), images(seed=1, scale=3.0, shift=2.0), images(seed=2, scale=3.0, shift=2.0)
    opt, count = sgd(net, 0.02), [0]

    def step(model, batch):
        opt.zero_grad()
        cross_entropy(model, batch).backward()
        opt.step()
        count[0] += 1
        if count[0] % 2 == 0:
            model.eval()
            with torch.no_grad():
                model(held[0][0])

    run(step, net, loader, 2)
    net.train()
    return ns.Case(net, cross_entropy, loader, opt, held, step=step)


@planted("NS109", "NS102")
def trained_in_eval_mode():
    """model.eval() before the first step: norms with mean 0 and variance 1 all along."""
    net, loader, held = small_cnn(8).eval(), images(seed=1, scale=3.0), images(seed=2, scale=3.0)
    opt = sgd(net, 0.003)
    train(net, cross_entropy, loader, opt, 60)
    return ns.Case(net, cross_entropy, loader, opt, held)


@planted("NS106", "NS132")
def teacher_in_train_mode():
    """Distillation: the teacher runs under no_grad but in train mode, and its statistics move."""
    return distillation(teacher_mode=True)


@planted("NS106", "NS132", NS107="the teacher's statistics are not those of its weights", NS131="the same")
def mean_teacher_in_train_mode():
    """Mean teacher under no_grad in train mode, fed brightened images and evaluated on others."""
    return mean_teacher(copy_buffers=False, teacher_eval=False, brighter=2.0)


@planted(
    "NS106",
    NS102="the statistics are off, and evaluation pays",
    NS112="data of training and of validation pass in turn",
)
def validation_in_train_mode():
    """The step validates on shifted data under no_grad without model.eval()."""
    net, loader, held = small_cnn(8).train(), images(seed=1), images(seed=2, shift=1.5)
    opt = sgd(net, 0.02)

    def step(model, batch):
        opt.zero_grad()
        cross_entropy(model, batch).backward()
        opt.step()
        with torch.no_grad():
            for x, _ in held[:2]:
                model(x)

    run(step, net, loader, 50)
    return ns.Case(net, cross_entropy, loader, opt, images(seed=3), step=step)


def far(seed):
    """Return images of another contrast and brightness."""
    return images(8, 16, seed=seed, scale=2.0, shift=2.0)


@planted("NS133", "NS101")
def thawed_by_train():
    """Norms frozen by eval() and requires_grad; the step calls model.train()."""
    net = pretrained().train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    opt = sgd(net, 0.003)

    def step(model, batch):
        model.train()
        opt.zero_grad()
        cross_entropy(model, batch).backward()
        opt.step()

    return ns.Case(net, cross_entropy, far(11), opt, far(12), step=step)


@planted("NS101", NS102="the statistics lag behind the new images")
def frozen_by_requires_grad_only():
    """A backbone whose parameters have no gradient, its norms in train mode on new images."""
    net = pretrained().train().requires_grad_(False)
    net.fc = nn.Linear(net.fc.in_features, 4)
    opt, loader = sgd(net, 0.05), far(11)
    train(net, cross_entropy, loader, opt, 5)
    return ns.Case(net, cross_entropy, loader, opt, far(12))


@planted("NS101", NS102="the statistics lag behind the new images")
def detector_with_frozen_backbone():
    """A detector of two outputs by mode, its backbone without gradient and in train mode."""
    net = DeeplySupervised().train()
    data = masks(seed=1)

    def loss_fn(model, batch):
        y, aux = model(batch[0])
        small = F.binary_cross_entropy_with_logits(aux, batch[1])
        return F.binary_cross_entropy_with_logits(y, batch[1]) + 0.4 * small

    def eval_loss_fn(model, batch):
        return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    train(net, loss_fn, data, sgd(net, 0.03), 40)
    for part in (net.enc1, net.enc2):
        part.requires_grad_(False)
    opt = sgd(net, 0.01)
    data = [(2 * x + 1, y) for x, y in data]
    train(net, loss_fn, data, opt, 4)
    held = [(2 * x + 1, y) for x, y in masks(seed=2)]
    return ns.Case(net, loss_fn, data, opt, held, eval_loss_fn=eval_loss_fn)


@planted(
    "NS101", NS102="the statistics lag behind the new images", NS109="after 6 steps half of the statistics is initial"
)
def torchvision_detector_without_eval_loss():
    """torchvision's detector, frozen by requires_grad, and nobody gave eval_loss_fn."""
    net = TorchvisionDetector().train()

    def data(seed):
        rows = []
        for pictures, labels in images(8, 16, classes=2, seed=seed, scale=2.0, shift=1.0):
            boxes = torch.stack([labels, 1 - labels, labels + 1, labels * 0 + 1], 1).float()
            rows.append((list(pictures), [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]))
        return rows

    def loss_fn(model, batch):
        return sum(model(*batch).values())

    net.backbone.requires_grad_(False)
    opt = sgd(net, 0.02)
    train(net, loss_fn, data(1), opt, 6)
    return ns.Case(net, loss_fn, data(1), opt, data(2))


@planted("NS107", "NS131")
def ema_of_parameters_only():
    """EMA of parameters() only: the average keeps the statistics of the first weights."""
    return ema(0.9, buffers="none", shift=2.0)


@planted("NS107", "NS131")
def ema_of_buffers_half_initial():
    """EMA of the whole state dict with a decay of .99 over 80 steps: statistics are nearly half initial."""
    return ema(0.99, steps=80, buffers="average", shift=2.0)


@planted("NS131", "NS107")
def target_of_parameters_only():
    """DQN with batch norm: the target gets parameters() every ten steps, never the statistics."""
    return q_learning(nn.BatchNorm1d, sync="parameters", shift=3.0)


@planted("NS131", "NS107", NS102="the client starts from the server's old statistics", NS109="the same")
def federated_parameters_only():
    """FedAvg sends parameters() only: the server evaluates with statistics nobody updated."""
    return fed_avg(keep_buffers=False, shifts=(2.0, 2.0, 2.0))


@planted("NS111")
def eval_forward_then_train_forward():
    """A consistency loss: scores of an eval-mode pass, then a train-mode pass, one backward."""
    net, loader, held = small_cnn(8).train(), images(seed=1), images(seed=2)
    opt = sgd(net, 0.02)

    def loss_fn(model, batch):
        was = model.training
        model.eval()
        clean = model(batch[0])
        model.train(was)
        noisy = model(batch[0] + 0.3 * torch.randn_like(batch[0]))
        return F.cross_entropy(noisy, batch[1]) + F.mse_loss(clean, noisy)

    train(net, loss_fn, loader, opt, 50)
    return ns.Case(net, loss_fn, loader, opt, held)


@planted("NS128")
def exported_in_train_mode():
    """torch.jit.trace of a model still in train mode."""
    case = classifier(small_cnn(8), steps=60)
    program = torch.jit.trace(case.model, case.loader[0][0], check_trace=False)
    return ns.Case(case.model, cross_entropy, case.loader, case.optimizer, case.eval_loader, exported=program)


@planted("NS119")
def folded_without_eps():
    """Norms folded into convolutions by hand: without eps, and the running mean is forgotten."""
    case = classifier(small_cnn(8), steps=60)
    net, layers = copy.deepcopy(case.model).eval(), []
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d):
            conv = layers[-1]
            scale = layer.weight.detach() / layer.running_var.sqrt()
            conv.weight.data *= scale[:, None, None, None]
            conv.bias = nn.Parameter(layer.bias.detach())
        else:
            layers.append(layer)
    folded = nn.Sequential(*layers)
    return ns.Case(case.model, cross_entropy, case.loader, case.optimizer, case.eval_loader, exported=folded)


@planted("NS115", "NS119")
def sync_conversion_dropped_activation():
    """convert_sync_batchnorm on timm's BatchNormAct2d: what is deployed has lost its activations."""
    case = classifier(timm_resnext(), px=8, steps=60, lr=0.02)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(case.model)).eval()
    return ns.Case(case.model, cross_entropy, case.loader, case.optimizer, case.eval_loader, exported=converted)


@planted("NS114")
def replicas_disagree():
    """Two processes trained on shards of unlike brightness, without broadcast_buffers."""
    case = classifier(small_cnn(8), steps=60)
    other = copy.deepcopy(case.model)
    with torch.no_grad():
        for x, _ in images(20, 32, seed=7, shift=1.0):
            other(x)
    held = case.eval_loader + images(8, 32, seed=8, shift=1.0)
    return ns.Case(case.model, cross_entropy, case.loader, case.optimizer, held, replicas=[other])


@planted("NS116")
def sync_norm_in_a_branch():
    """A SyncBatchNorm in a head that runs only for batches which have many of class 0."""

    class Branchy(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.SyncBatchNorm.convert_sync_batchnorm(ResNet((1, 1)))
            self.extra = nn.Sequential(nn.Linear(4, 4), nn.SyncBatchNorm(4), nn.ReLU(), nn.Linear(4, 4))

        def forward(self, x, y):
            scores = self.trunk(x)
            return scores + self.extra(scores) if (y == 0).sum() > 8 else scores

    def loss_fn(model, batch):
        return F.cross_entropy(model(*batch), batch[1])

    return classifier(Branchy(), loss_fn=loss_fn, steps=60, lr=0.02)
