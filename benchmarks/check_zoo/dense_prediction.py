"""Segmentation, detection and key points."""

import torch
from torch import nn
from torch.nn import functional as F

from .kit import healthy, images, ns, sgd, train
from .residual_networks import ResNet, conv_of


def masks(batches=8, size=16, px=16, *, seed=0):
    """Return images and binary masks of a bright square in each."""
    draw = torch.Generator().manual_seed(seed)
    pictures, labels = torch.randn(batches * size, 3, px, px, generator=draw), torch.zeros(batches * size, 1, px, px)
    corner = torch.randint(px // 2, (batches * size, 2), generator=draw)
    for k, (i, j) in enumerate(corner.tolist()):
        labels[k, 0, i : i + px // 2, j : j + px // 2] = 1
    pictures = pictures + 1.5 * labels
    return list(zip(pictures.split(size), labels.split(size), strict=True))


class DoubleConv(nn.Sequential):
    def __init__(self, width, out, norm=nn.BatchNorm2d):
        super().__init__(
            conv_of(width, out), norm(out), nn.ReLU(inplace=True), conv_of(out, out), norm(out), nn.ReLU(inplace=True)
        )


class UNet(nn.Module):
    def __init__(self, width=8, norm=nn.BatchNorm2d):
        super().__init__()
        self.enc1, self.enc2 = DoubleConv(3, width, norm), DoubleConv(width, 2 * width, norm)
        self.mid = DoubleConv(2 * width, 4 * width, norm)
        self.up2, self.dec2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), DoubleConv(4 * width, 2 * width, norm)
        self.up1, self.dec1 = nn.ConvTranspose2d(2 * width, width, 2, 2), DoubleConv(2 * width, width, norm)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x):
        a = self.enc1(x)
        b = self.enc2(F.max_pool2d(a, 2))
        y = self.up2(self.mid(F.max_pool2d(b, 2)))
        y = self.up1(self.dec2(torch.cat([b, y], 1)))
        return self.out(self.dec1(torch.cat([a, y], 1)))


def dice_and_entropy(model, batch):
    """Return binary cross-entropy plus one minus Dice."""
    scores = model(batch[0])
    p = torch.sigmoid(scores)
    dice = (2 * (p * batch[1]).sum((1, 2, 3)) + 1) / ((p + batch[1]).sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(scores, batch[1]) + 1 - dice.mean()


def segmentation(net, loss_fn=dice_and_entropy, steps=60, lr=3e-3, size=16):
    """Return the set-up of a segmentation network after its training with Adam."""
    loader, held = masks(seed=1, size=size), masks(seed=2, size=size)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    net.train()
    train(net, loss_fn, loader, optimizer, steps)
    return ns.Case(net, loss_fn, loader, optimizer, held)


@healthy()
def unet():
    """U-Net with batch norm, Dice and cross-entropy, Adam."""
    return segmentation(UNet())


@healthy()
def unet_instance_norm():
    """nnU-Net-like: affine InstanceNorm, leaky ReLU, batch of two."""

    def norm(width):
        return nn.InstanceNorm2d(width, affine=True)

    return segmentation(UNet(norm=norm), size=2, steps=80)


class ASPP(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, out, 3, padding=rate, dilation=rate, bias=False), nn.BatchNorm2d(out), nn.ReLU()
            )
            for rate in (1, 2, 3)
        )
        self.pooled = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv_of(width, out, size=1), nn.BatchNorm2d(out), nn.ReLU()
        )
        self.project = nn.Sequential(conv_of(4 * out, out, size=1), nn.BatchNorm2d(out), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, x):
        pooled = F.interpolate(self.pooled(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*[branch(x) for branch in self.branches], pooled], 1))


class DeepLab(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = ResNet((1, 1), width=8)
        self.aspp, self.head = ASPP(16, 16), nn.Sequential(conv_of(16, 16), nn.BatchNorm2d(16), nn.ReLU())
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, x):
        return F.interpolate(self.out(self.head(self.aspp(self.backbone.features(x)))), size=x.shape[-2:])


@healthy()
def deeplab():
    """DeepLab with an ASPP whose pooled branch normalizes over 32 values a channel."""
    return segmentation(DeepLab(), size=32, steps=80)


class Yolo(nn.Module):
    """Returns raw maps in training; decoded boxes, and the maps, in evaluation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv_of(3, 8), nn.BatchNorm2d(8, eps=1e-3, momentum=0.03), nn.SiLU())
        self.down = nn.Sequential(conv_of(8, 16, 2), nn.BatchNorm2d(16, eps=1e-3, momentum=0.03), nn.SiLU())
        self.heads = nn.ModuleList([nn.Conv2d(8, 5, 1), nn.Conv2d(16, 5, 1)])

    def forward(self, x):
        a = self.stem(x)
        maps = [head(y) for head, y in zip(self.heads, (a, self.down(a)), strict=True)]
        if self.training:
            return maps
        return torch.cat([m.flatten(2).sigmoid() for m in maps], 2), maps


def yolo_loss(maps, target):
    return sum(
        F.binary_cross_entropy_with_logits(m, F.interpolate(target, size=m.shape[-2:]).expand_as(m)) for m in maps
    )


@healthy()
def yolo():
    """YOLO-like detector: maps in training, boxes and maps in evaluation, momentum .03 over 200 steps."""
    net = Yolo().train()
    loader, held = masks(seed=1), masks(seed=2)

    def loss_fn(model, batch):
        return yolo_loss(model(batch[0]), batch[1])

    def eval_loss_fn(model, batch):
        return yolo_loss(model(batch[0])[1], batch[1])

    optimizer = sgd(net, 0.02)
    train(net, loss_fn, loader, optimizer, 200)
    return ns.Case(net, loss_fn, loader, optimizer, held, eval_loss_fn=eval_loss_fn)


class TorchvisionDetector(nn.Module):
    """Takes targets and returns a dictionary of losses in training; a list of dictionaries in evaluation."""

    def __init__(self):
        super().__init__()
        self.backbone, self.box, self.cls = ResNet((1, 1), width=8), nn.Linear(16, 4), nn.Linear(16, 2)

    def forward(self, pictures, targets=None):
        y = self.backbone.features(torch.stack(pictures)).mean((2, 3))
        boxes, scores = self.box(y), self.cls(y)
        if self.training:
            wanted, labels = torch.stack([t["boxes"] for t in targets]), torch.stack([t["labels"] for t in targets])
            return {"box": F.smooth_l1_loss(boxes, wanted), "class": F.cross_entropy(scores, labels)}
        return [{"boxes": b, "scores": s} for b, s in zip(boxes, scores.softmax(1), strict=True)]


@healthy()
def torchvision_detector():
    """torchvision-like detector: losses in training, boxes in evaluation, a list of pictures and targets."""

    def data(seed):
        batches = []
        for pictures, labels in images(8, 16, classes=2, seed=seed):
            boxes = torch.stack([labels, 1 - labels, labels + 1, labels * 0 + 1], 1).float()
            targets = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]
            batches.append((list(pictures), targets))
        return batches

    def loss_fn(model, batch):
        return sum(model(*batch).values())

    def eval_loss_fn(model, batch):
        found = model(batch[0])
        boxes = F.smooth_l1_loss(torch.stack([f["boxes"] for f in found]), torch.stack([t["boxes"] for t in batch[1]]))
        right = torch.stack([f["scores"][t["labels"]] for f, t in zip(found, batch[1], strict=True)])
        return boxes - right.log().mean()

    net, loader, held = TorchvisionDetector().train(), data(1), data(2)
    optimizer = sgd(net, 0.02)
    train(net, loss_fn, loader, optimizer, 80)
    return ns.Case(net, loss_fn, loader, optimizer, held, eval_loss_fn=eval_loss_fn)


class Pyramid(nn.Module):
    """A feature pyramid whose head is shared by the levels."""

    def __init__(self, head_norms):
        super().__init__()
        self.one = nn.Sequential(conv_of(3, 16), nn.BatchNorm2d(16), nn.ReLU())
        self.two = nn.Sequential(conv_of(16, 16, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.three = nn.Sequential(conv_of(16, 16, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.lateral = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(3))
        self.head, self.norms, self.out = conv_of(16, 16), nn.ModuleList(head_norms), nn.Conv2d(16, 1, 1)

    def forward(self, x):
        levels = [self.one(x)]
        levels += [self.two(levels[0])]
        levels += [self.three(levels[1])]
        levels = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        for k in (1, 0):
            levels[k] = levels[k] + F.interpolate(levels[k + 1], scale_factor=2)
        norms = list(self.norms) * (3 // len(self.norms))
        return [self.out(F.relu(norm(self.head(level)))) for norm, level in zip(norms, levels, strict=True)]


def pyramid_loss(model, batch):
    return yolo_loss(model(batch[0]), batch[1])


@healthy()
def fcos_group_norm():
    """FCOS: a head shared by three pyramid levels, with GroupNorm."""
    return segmentation(Pyramid([nn.GroupNorm(4, 16)]), pyramid_loss)


@healthy()
def efficientdet():
    """EfficientDet: convolutions of the head shared by three levels, batch norm of each level its own."""
    return segmentation(Pyramid(nn.BatchNorm2d(16) for _ in range(3)), pyramid_loss, steps=80)


@healthy()
def key_points():
    """Simple baselines for pose: transposed convolutions with batch norm, squared error of heat maps."""
    net = nn.Sequential(
        conv_of(3, 8), nn.BatchNorm2d(8, momentum=0.1), nn.ReLU(), conv_of(8, 16, 2), nn.BatchNorm2d(16, momentum=0.1),
        nn.ReLU(), conv_of(16, 16, 2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 1, 1),
    )  # fmt: skip

    def loss_fn(model, batch):
        heat = F.avg_pool2d(batch[1], 7, 1, 3)
        return F.mse_loss(model(batch[0]), heat)

    return segmentation(net, loss_fn, steps=80)


class DeeplySupervised(UNet):
    """Auxiliary outputs of the decoder, in training only."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Conv2d(16, 1, 1)

    def forward(self, x):
        a = self.enc1(x)
        b = self.enc2(F.max_pool2d(a, 2))
        c = self.dec2(torch.cat([b, self.up2(self.mid(F.max_pool2d(b, 2)))], 1))
        y = self.out(self.dec1(torch.cat([a, self.up1(c)], 1)))
        return (y, F.interpolate(self.aux(c), scale_factor=2)) if self.training else y


@healthy()
def auxiliary_heads():
    """U-Net with deep supervision: an auxiliary output in training, one output in evaluation."""

    def loss_fn(model, batch):
        y, aux = model(batch[0])
        return F.binary_cross_entropy_with_logits(y, batch[1]) + 0.4 * F.binary_cross_entropy_with_logits(aux, batch[1])

    def eval_loss_fn(model, batch):
        return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    case = segmentation(DeeplySupervised(), loss_fn)
    return ns.Case(case.model, loss_fn, case.loader, case.optimizer, case.eval_loader, eval_loss_fn=eval_loss_fn)
