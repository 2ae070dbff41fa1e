"""Small convolutional networks whose norms look trained, and their state to compare."""

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def trained_looking(model):
    """Give every norm gains, shifts and statistics that are none of 0 and 1, and every layer a bias that is not 0."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for m in model.modules():
            for name in ("weight", "bias"):
                p = getattr(m, name, None)
                if isinstance(p, nn.Parameter) and p.ndim == 1:
                    p.copy_(torch.randn(p.shape, generator=g) + (1.5 if name == "weight" else 0.3))
            if isinstance(m, _BatchNorm) and m.running_mean is not None:
                m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=g))
                m.running_var.copy_(torch.rand(m.running_var.shape, generator=g) + 0.5)
                m.num_batches_tracked.fill_(7)
    return model


def state_of(model):
    """Everything that must come back: tree, classes, modes, identities, hooks, values."""
    modules = [(path, m, type(m), m.training, sorted(vars(m))) for path, m in model.named_modules()]
    hooks = [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()]
    tensors = [(n, t, t.requires_grad) for n, t in (*model.named_parameters(), *model.named_buffers())]
    bits = {name: value.clone() for name, value in model.state_dict().items()}
    return modules, hooks, [(n, id(t), r) for n, t, r in tensors], bits


def assert_same_state(a, b):
    assert a[:3] == b[:3]
    assert list(a[3]) == list(b[3])
    for name, value in a[3].items():
        torch.testing.assert_close(value, b[3][name], rtol=0, atol=0, equal_nan=True)


class Residual(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def small_convnet():
    torch.manual_seed(0)
    return trained_looking(
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            Residual(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 6),
            nn.BatchNorm1d(6),
            nn.Dropout(0.5),
            nn.Linear(6, 2),
        )
    )


def images(n=6, seed=1, dtype=torch.float32):
    return torch.randn(n, 3, 7, 7, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def twin(model):
    return copy.deepcopy(model)
