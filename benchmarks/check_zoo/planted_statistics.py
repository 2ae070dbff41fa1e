"""Defects of statistics: where they come from, how they are averaged, what they leave out."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from .companions import mlp, small_cnn
from .dense_prediction import DeepLab, Pyramid, pyramid_loss, segmentation
from .generators import dcgan, wgan_gp
from .kit import classifier, cross_entropy, images, ns, planted, sgd, train, vectors, waves
from .loops import accumulation
from .residual_networks import ResNet, conv_of
from .sequences import masked_loss, ragged


def sorted_evaluation(norm, lr=0.05, **options):
    """Return a classifier evaluated on data that are sorted by class."""
    case = classifier(mlp(norm=norm), vectors, steps=80, lr=lr, **options)
    held = vectors(6, 64, seed=2, sort=True, **options)
    return ns.Case(case.model, cross_entropy, case.loader, case.optimizer, held)


@planted("NS129")
def no_running_statistics():
    """track_running_stats=False, evaluated on a set that is sorted by class."""
    return sorted_evaluation(lambda width: nn.BatchNorm1d(width, track_running_stats=False))


class FunctionalNorm(nn.Module):
    """F.batch_norm with training=True always."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, 1e-5)


@planted("NS129", "NS130")
def functional_batch_norm():
    """F.batch_norm(training=True) in both modes, evaluated on a set that is sorted by class."""
    return sorted_evaluation(FunctionalNorm)


class OwnNorm(FunctionalNorm):
    """Batch statistics in training, running statistics in evaluation, which nothing updates."""

    def forward(self, x):
        if self.training:
            mean, var = x.mean(0), x.var(0, unbiased=False)
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) / (var + 1e-5).sqrt() * self.weight + self.bias


@planted("NS130", "NS109", "NS102")
def own_norm_never_moves():
    """A norm class of the user's own whose running statistics nothing updates."""
    return classifier(mlp(norm=OwnNorm), vectors, steps=80, scale=4.0, shift=3.0, lr=0.02)


@planted("NS108")
def momentum_of_keras():
    """momentum=0.99 copied from Keras."""
    return classifier(ResNet((1, 1), norm=lambda width: nn.BatchNorm2d(width, momentum=0.99)), size=8, steps=80)


def odd_loader(data, size, seed):
    rows = data(5, size, seed=seed)
    x, y = torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows])
    return DataLoader(TensorDataset(x[: 4 * size + 1], y[: 4 * size + 1]), size)


@planted("NS104")
def last_batch_of_one_mlp():
    """65 rows in batches of 16, BatchNorm1d: torch raises on the last batch."""
    net = mlp().train()
    loader = odd_loader(vectors, 16, 1)
    opt = sgd(net, 0.02)
    train(net, cross_entropy, list(loader)[:4], opt, 60)
    return ns.Case(net, cross_entropy, loader, opt, vectors(4, 64, seed=2))


@planted("NS104")
def last_batch_of_one_cnn():
    """129 images in batches of 32: the last batch is one image."""
    net = small_cnn(8).train()
    loader, opt = odd_loader(images, 32, 1), sgd(net, 0.02)
    train(net, cross_entropy, loader, opt, 80)
    return ns.Case(net, cross_entropy, loader, opt, images(6, 32, seed=2))


@planted("NS120", "NS102")
def sorted_loader():
    """shuffle=False on a training set that is sorted by class."""
    case = classifier(small_cnn(8), steps=80, sort=True)
    return ns.Case(case.model, cross_entropy, case.loader, case.optimizer, images(seed=2))


@planted("NS135", "NS112", "NS102", NS120="batches of a domain each are alike, and mixing the domains is the cure")
def alternating_domains():
    """Batches of two domains in turn: the running statistics lie between them."""

    def mixed(seed):
        a, b = images(5, 32, seed=seed, shift=-2.0), images(5, 32, seed=seed + 40, shift=2.0, scale=2.0)
        return [batch for pair in zip(a, b, strict=True) for batch in pair]

    net, loader = small_cnn(8).train(), mixed(1)
    opt = sgd(net, 0.02)
    train(net, cross_entropy, loader, opt, 90)
    return ns.Case(net, cross_entropy, loader, opt, mixed(2))


@planted("NS135", "NS112", "NS136", NS102="after 10 steps the statistics lag behind", NS109="the same")
def discriminator_of_two_streams():
    """Real and generated images in two calls of one discriminator, early in training."""
    return dcgan("d", steps=10)


@planted(
    "NS134",
    NS102="the statistics are those of the stream that comes last, and the loss in eval mode pays",
    NS112="real, generated and mixed images pass in turn, their standard deviations as 1 to 6",
    NS136="the same",
)
def penalty_through_batch_norm():
    """WGAN-GP whose critic has batch norm: the penalty on each sample's gradient couples the batch."""
    return wgan_gp(nn.BatchNorm2d)


@planted("NS136", "NS112")
def norm_shared_by_levels():
    """RetinaNet's head with one batch norm over three pyramid levels."""
    net = Pyramid([nn.BatchNorm2d(16)])
    with torch.no_grad():
        for k, lateral in enumerate(net.lateral):
            lateral.weight.mul_(1 + 2 * k), lateral.bias.fill_(1.5 * k)
    return segmentation(net, pyramid_loss, steps=60)


class SharedRNN(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.width, self.cell, self.norm = width, nn.Linear(width + 8, width, bias=False), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = x.view(len(x), -1, 8)
        h = x.new_zeros(len(x), self.width)
        for t in range(x.shape[1]):
            h = torch.relu(self.norm(self.cell(torch.cat([x[:, t] * (1 + t), h], 1))))
        return self.head(h)


@planted("NS136", "NS112", "NS102")
def norm_shared_by_time_steps():
    """One batch norm for all time steps of a recurrent cell."""
    net = SharedRNN()
    return classifier(net, waves, size=64, steps=300, optimizer=torch.optim.Adam(net.parameters(), 3e-3))


@planted("NS105", "NS113")
def micro_batches_of_two():
    """Gradients accumulated over 16 micro-batches of 2, batch norm on 2x2 maps."""
    net = nn.Sequential(
        conv_of(3, 12, 2), nn.BatchNorm2d(12), nn.ReLU(), conv_of(12, 24, 2), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip
    return accumulation(net, 2, 16, steps=40, lr=0.02)


@planted("NS105", "NS104", "NS138", NS109="the initial variance of 1 outlives 60 steps where the variance is .002")
def pooled_branch_of_two():
    """DeepLab's pooled branch at a batch of two: each norm value is +1 or -1."""
    return segmentation(DeepLab(), size=2, steps=60)


class Checkpointed(ResNet):
    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in self.layers:
            x = checkpoint(stage, x, use_reentrant=False) if self.training else stage(x)
        return self.fc(self.avgpool(x).flatten(1))


@planted("NS110")
def checkpointed_norms():
    """Activation checkpointing over stages with batch norm: two updates a step."""
    return classifier(Checkpointed((1, 1, 1)), steps=60, lr=0.03)


@planted("NS103")
def poisoned_statistics():
    """One batch with an infinite pixel, days ago; the loss was skipped, the statistics were not."""
    net = small_cnn(8).train()
    loader, opt = images(seed=1), sgd(net, 0.02)
    train(net, cross_entropy, loader, opt, 40)
    bad = loader[0][0].clone()
    bad[0, 0, 0, 0] = float("inf")
    net(bad)
    train(net, cross_entropy, loader, opt, 20)
    return ns.Case(net, cross_entropy, loader, opt, images(seed=2))


@planted("NS118")
def half_precision_model():
    """model.bfloat16(): the running statistics are averaged in bfloat16."""

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0].bfloat16()).float(), batch[1])

    return classifier(small_cnn(8).bfloat16(), loss_fn=loss_fn, steps=80, lr=0.02)


class PaddedConv(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.first, self.n1 = nn.Conv1d(8, width, 1), nn.BatchNorm1d(width)
        self.second, self.n2, self.head = nn.Conv1d(width, width, 1), nn.BatchNorm1d(width), nn.Linear(width, 4)

    def forward(self, x, mask):
        y = F.relu(self.n2(self.second(F.relu(self.n1(self.first(x.transpose(1, 2)))))))
        return self.head((y * mask[:, None]).sum(2) / mask.sum(1, keepdim=True))


@planted("NS117")
def padding_counted():
    """Padded sequences of a quarter to full length through BatchNorm1d."""
    return classifier(PaddedConv(), ragged, loss_fn=masked_loss, steps=80, lr=0.03)


@planted("NS109", "NS102", "NS108")
def momentum_too_small_for_so_few_steps():
    """momentum=.001 and 100 steps: nine tenths of the statistics are still initial."""
    net = ResNet((1, 1), norm=lambda width: nn.BatchNorm2d(width, momentum=0.001))
    return classifier(net, steps=100, lr=0.02, scale=3.0, shift=1.0)


@planted("NS102")
def statistics_of_other_data():
    """The checkpoint's statistics were taken on images of another scale (0 to 255), then not again."""
    case = classifier(small_cnn(8), steps=70)
    for module in case.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.mul_(2.0).add_(0.5), module.running_var.mul_(3.0)
    return case


@planted("NS109", "NS102")
def new_norms_in_eval_mode():
    """Norms added to a trained network and left in eval mode: mean 0, variance 1, gains that train."""
    net = nn.Sequential(*[layer for layer in small_cnn(8) if not isinstance(layer, nn.BatchNorm2d)])
    train(net, cross_entropy, images(seed=1, shift=3.0, scale=2.0), sgd(net, 0.005), 50)
    layers = []
    for layer in net:
        layers += [layer, nn.BatchNorm2d(layer.out_channels)] if isinstance(layer, nn.Conv2d) else [layer]
    net = nn.Sequential(*layers).eval()
    loader, opt = images(seed=1, shift=3.0, scale=2.0), sgd(net, 0.002)
    train(net, cross_entropy, loader, opt, 30)
    return ns.Case(net, cross_entropy, loader, opt, images(seed=2, shift=3.0, scale=2.0))
