"""Tables, physics, graphs, point clouds, regression, several tasks, reinforcement."""

import torch
from torch import nn
from torch.nn import functional as F

from .companions import mlp
from .kit import classifier, healthy, images, ns, sgd, squared_error, train, vectors
from .residual_networks import conv_of


def regression(batches=10, size=64, dim=8, *, seed=0, scale=1.0, shift=0.0):
    """Return batches of tables and one target."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(batches * size, dim, generator=draw)
    y = x[:, :1] * x[:, 1:2] + torch.sin(2 * x[:, 2:3]) + 0.1 * torch.randn(len(x), 1, generator=draw)
    return list(zip((x * scale + shift).split(size), y.split(size), strict=True))


class GhostBatchNorm(nn.Module):
    """Batch norm over virtual batches of 32 (TabNet)."""

    def __init__(self, width, virtual=32):
        super().__init__()
        self.bn, self.virtual = nn.BatchNorm1d(width, momentum=0.02), virtual

    def forward(self, x):
        chunks = x.chunk(max(1, -(-len(x) // self.virtual)), 0)
        return torch.cat([self.bn(chunk) for chunk in chunks], 0)


def ghost(virtual, size=256):
    """Return a gated tabular network with ghost batch norm."""

    class Tab(nn.Module):
        def __init__(self):
            super().__init__()
            self.start, self.fc1, self.n1 = (
                nn.BatchNorm1d(12),
                nn.Linear(12, 48, bias=False),
                GhostBatchNorm(48, virtual),
            )
            self.fc2, self.n2 = nn.Linear(24, 48, bias=False), GhostBatchNorm(48, virtual)
            self.head = nn.Linear(24, 4)

        def forward(self, x):
            x = F.glu(self.n1(self.fc1(self.start(x))))
            return self.head((F.glu(self.n2(self.fc2(x))) + x) * 0.5**0.5)

    net = Tab()
    return classifier(net, vectors, size=size, steps=100, optimizer=torch.optim.Adam(net.parameters(), 5e-3))


@healthy()
def tabnet():
    """TabNet-like: gated linear units with ghost batch norm of 32 out of 256, momentum .02."""
    return ghost(32)


@healthy()
def entity_embeddings():
    """fastai's tabular model: embeddings, linear, ReLU, batch norm, dropout."""

    class Tabular(nn.Module):
        def __init__(self):
            super().__init__()
            self.embeds, self.bn_cont = nn.ModuleList(nn.Embedding(6, 4) for _ in range(3)), nn.BatchNorm1d(9)
            self.layers = nn.Sequential(
                nn.Linear(21, 48), nn.ReLU(True), nn.BatchNorm1d(48), nn.Dropout(0.1), nn.Linear(48, 24), nn.ReLU(True),
                nn.BatchNorm1d(24), nn.Linear(24, 4),
            )  # fmt: skip

        def forward(self, x):
            codes = (x[:, :3] * 1.5 + 3).clamp(0, 5).long()
            parts = [embed(codes[:, k]) for k, embed in enumerate(self.embeds)]
            return self.layers(torch.cat([*parts, self.bn_cont(x[:, 3:])], 1))

    return classifier(Tabular(), vectors, steps=80, lr=0.03)


@healthy()
def physics():
    """Physics-informed network: u' = cos x by autograd.grad in the loss, layer norm and tanh."""

    def residual(model, x):
        x = x.clone().requires_grad_(True)
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return ((slope - torch.cos(x)) ** 2).mean() + model(torch.zeros(1, 1)).square().mean()

    net = nn.Sequential(
        nn.Linear(1, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    ).train()
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    draw = torch.Generator().manual_seed(1)
    loader, held = ([torch.rand(64, 1, generator=draw) * 6 - 3 for _ in range(8)] for _ in range(2))
    train(net, residual, loader, opt, 80)
    return ns.Case(net, residual, loader, opt, held)


@healthy()
def one_output():
    """Regression with one output, batch norm, Adam and squared error."""
    net = mlp(8, 32, 1)
    return classifier(
        net, regression, loss_fn=squared_error, steps=150, optimizer=torch.optim.Adam(net.parameters(), 5e-3)
    )


@healthy()
def self_normalizing():
    """SELU with LeCun initialisation and alpha dropout, no norms."""
    net = nn.Sequential(
        nn.Linear(12, 48), nn.SELU(), nn.AlphaDropout(0.05), nn.Linear(48, 48), nn.SELU(), nn.Linear(48, 48), nn.SELU(),
        nn.Linear(48, 4),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
    return classifier(net, vectors, lr=0.02)


class GIN(nn.Module):
    """Graph isomorphism network with batch norm over the nodes of all graphs."""

    def __init__(self, width=24):
        super().__init__()
        self.lift = nn.Linear(6, width)
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(3)
        )
        self.norms, self.head = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(3)), nn.Linear(width, 4)

    def forward(self, x, edges, graph, count):
        x = self.lift(x)
        for layer, norm in zip(self.mlps, self.norms, strict=True):
            near = torch.zeros_like(x).index_add_(0, edges[1], x[edges[0]])
            x = F.relu(norm(layer(x + near)))
        pooled = torch.zeros(count, x.shape[1]).index_add_(0, graph, x)
        return self.head(pooled / 10)


def graphs(batches=8, size=24, *, seed=0):
    """Return batches of ring graphs with chords, nodes of all graphs in one table."""
    draw = torch.Generator().manual_seed(seed)
    centres, rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(96)), []
    for _ in range(batches):
        y, counts = torch.randint(4, (size,), generator=draw), torch.randint(6, 14, (size,), generator=draw)
        graph = torch.repeat_interleave(torch.arange(size), counts)
        start = (counts.cumsum(0) - counts)[graph]
        place = torch.arange(len(graph)) - start
        after = start + (place + 1) % counts[graph]
        edges = torch.stack(
            [torch.cat([torch.arange(len(graph)), after]), torch.cat([after, torch.arange(len(graph))])]
        )
        x = 0.5 * centres[y][graph] + torch.randn(len(graph), 6, generator=draw)
        rows.append((x, edges, graph, y))
    return rows


@healthy()
def graph_network():
    """GIN: graphs of 6 to 13 nodes in one batch, norms over all nodes."""

    def loss_fn(model, batch):
        x, edges, graph, y = batch
        return F.cross_entropy(model(x, edges, graph, len(y)), y)

    net = GIN()
    return classifier(net, graphs, loss_fn=loss_fn, steps=90, optimizer=torch.optim.Adam(net.parameters(), 3e-3))


class PointNet(nn.Module):
    """Shared layers over points with batch norm, a transform network, max pooling."""

    def __init__(self):
        super().__init__()
        self.tconv = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU())
        self.tfc = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 9))
        nn.init.zeros_(self.tfc[3].weight), nn.init.zeros_(self.tfc[3].bias)
        self.points = nn.Sequential(
            nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 48, 1), nn.BatchNorm1d(48), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 4))

    def forward(self, x):
        turn = self.tfc(self.tconv(x).amax(2)).view(-1, 3, 3) + torch.eye(3)
        return self.head(self.points(turn @ x).amax(2))


def clouds(batches=8, size=32, *, seed=0):
    """Return ellipsoids of points, and which axis is long."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (batches * size,), generator=draw)
    axes = torch.tensor([[2.0, 0.5, 0.5], [0.5, 2, 0.5], [0.5, 0.5, 2], [1, 1, 1]])[y]
    x = F.normalize(torch.randn(len(y), 3, 32, generator=draw), dim=1) * axes[..., None]
    return list(zip(x.split(size), y.split(size), strict=True))


@healthy()
def point_net():
    """PointNet: shared layers over points, a transform network starting from the identity."""
    net = PointNet()
    return classifier(net, clouds, steps=90, optimizer=torch.optim.Adam(net.parameters(), 3e-3))


class MultiTask(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            conv_of(3, 12), nn.BatchNorm2d(12), nn.ReLU(), conv_of(12, 24, 2), nn.BatchNorm2d(24), nn.ReLU()
        )
        self.cls, self.depth, self.logvar = nn.Linear(24, 4), nn.Conv2d(24, 1, 1), nn.Parameter(torch.zeros(2))

    def forward(self, x):
        y = self.trunk(x)
        return self.cls(y.mean((2, 3))), self.depth(y)


@healthy()
def multi_task():
    """Two heads, two losses weighted by learned uncertainty."""

    def loss_fn(model, batch):
        scores, depth = model(batch[0])
        wanted = F.avg_pool2d(batch[0].mean(1, keepdim=True), 2)
        losses = torch.stack([F.cross_entropy(scores, batch[1]), F.mse_loss(depth, wanted)])
        return (losses * (-model.logvar).exp() + model.logvar).sum()

    return classifier(MultiTask(), loss_fn=loss_fn, steps=80, lr=0.02)


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(12, 48), nn.LayerNorm(48), nn.Tanh(), nn.Linear(48, 48), nn.LayerNorm(48), nn.Tanh()
        )
        self.pi, self.v = nn.Linear(48, 4), nn.Linear(48, 1)
        nn.init.orthogonal_(self.pi.weight, 0.01)

    def forward(self, x):
        y = self.body(x)
        return torch.distributions.Categorical(logits=self.pi(y)), self.v(y).squeeze(1)


@healthy()
def actor_critic():
    """PPO: shared body with layer norm, clipped ratio, value loss and entropy, clipped gradients."""

    def rollouts(seed):
        rows = []
        draw = torch.Generator().manual_seed(seed)
        for x, best in vectors(8, 64, seed=seed):
            action = torch.randint(4, (len(x),), generator=draw)
            rows.append((x, action, torch.full((len(x),), -1.386), (action == best).float()))
        return rows

    def loss_fn(model, batch):
        x, action, old, gain = batch
        pi, value = model(x)
        ratio, edge = (pi.log_prob(action) - old).exp(), gain - value.detach()
        actor = -torch.min(ratio * edge, ratio.clamp(0.8, 1.2) * edge).mean()
        return actor + 0.5 * F.mse_loss(value, gain) - 0.01 * pi.entropy().mean()

    net = ActorCritic().train()
    opt = torch.optim.Adam(net.parameters(), 2e-3, eps=1e-5)

    def step(model, batch):
        opt.zero_grad()
        loss_fn(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step()

    loader, held = rollouts(1), rollouts(2)
    for batch in loader * 6:
        step(net, batch)
    return ns.Case(net, loss_fn, loader, opt, held, step=step)


@healthy()
def autoencoder():
    """Convolutional auto-encoder with spectral norm in its encoder and batch norm in its decoder."""
    sn = nn.utils.parametrizations.spectral_norm
    net = nn.Sequential(
        sn(nn.Conv2d(3, 12, 3, 2, 1)), nn.ReLU(), sn(nn.Conv2d(12, 16, 3, 2, 1)), nn.ReLU(),
        nn.ConvTranspose2d(16, 12, 4, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.ConvTranspose2d(12, 12, 4, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 3, 3, padding=1),
    ).train()  # fmt: skip

    def loss_fn(model, batch):
        return F.mse_loss(model(batch[0]), batch[0])

    loader, held, opt = images(seed=1), images(seed=2), sgd(net, 0.05)
    train(net, loss_fn, loader, opt, 80)
    return ns.Case(net, loss_fn, loader, opt, held)
