"""Set-ups as users write them: the text of Python files; and one that a fix harms."""

from normscope.evidence import examples

NET = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy
import normscope as ns

def loss_fn(model, batch):
    return cross_entropy(model(batch[0]), batch[1])

def data(n=4, size=32):
    stream = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 6, generator=stream), torch.randint(3, (size,), generator=stream)) for _ in range(n)]

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

def trained():
    model, loader = net(), data()
    for _ in range(12):
        for batch in loader:
            model(batch[0])
    return model
"""


WELL = """
def make():
    model = trained()
    return ns.Case(model, loss_fn, data(), torch.optim.SGD(model.parameters(), 0.1), data(2))
"""
POISONED = """
def make():
    model = trained()
    model[1].running_mean[2] = float("nan")
    return ns.Case(model, loss_fn, data(), torch.optim.SGD(model.parameters(), 0.1), data(2))
"""


LOADER = "class L:\n    def __iter__(self):\n        {}\ndef make():\n    return net(), loss_fn, L()"


HOSTILE = {
    "custom autograd": """
        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return 2 * x
            @staticmethod
            def backward(ctx, g):
                return 2 * g
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = trained()
            def forward(self, x):
                return Double.apply(self.net(x))
        """,
    "called twice": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.inlet, self.norm, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
            def forward(self, x):
                return self.head(self.norm(self.inlet(self.norm(self.inlet(x)))))
        """,
    "data-dependent branch": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.calls = trained(), trained(), 0
            def forward(self, x):
                self.calls += 1
                return self.a(x) if x[0, 0] > 0 else self.b(x)
        """,
    "NaN inputs": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = trained()
            def forward(self, x):
                return self.net(torch.where(x > 2, torch.nan, x))
        """,
    "hooks, noise and modes": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = trained()
                self.net[1].register_forward_hook(lambda m, i, o: o + 0.0)
                self.drop = nn.Dropout(0.3)
                self.seen = []
            def forward(self, x):
                self.seen.append(len(x))
                return self.net(self.drop(x) + 0.01 * torch.rand_like(x))
        """,
    "no norm": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(6, 3)
            def forward(self, x):
                return self.net(x)
        """,
}


def other_means(**options):
    """Training data of mean 3, and data of evaluation whose statistics the norm has: to recalibrate would harm."""
    norm = examples.batch_norm(6, mean=0.0, variance=1.0)
    norm.num_batches_tracked.fill_(1000)
    evaluation = [examples.two_values(0.0, 1.0 + 0.01 * i, 64, 6) for i in range(3)]
    loader = [examples.two_values(3.0, 2.0, 64, 6)] * 10

    def loss_fn(model, batch):
        return (model(batch).square().mean() - 1).square() + 1

    return examples.alone(norm, loader, loss_fn=loss_fn, **{"eval_loader": evaluation} | options)
