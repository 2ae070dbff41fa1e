"""Batch norm as the compiler is given it: right where a mean is large, forward and backward, with its activation."""

import pytest
import torch
from torch.nn import functional as F

from normscope.ops.ways.compiled import compiled_batch_norm


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
def test_values_moments_and_gradients_are_those_of_float64(offset, activation):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(32, 5, 6, 6, generator=source) * 1.5 + offset
    w, b = torch.rand(5, generator=source) + 0.5, torch.randn(5, generator=source)
    g = torch.randn(x.shape, generator=source)
    ours = [t.clone().requires_grad_() for t in (x, w, b)]
    y, moments = compiled_batch_norm(*ours, 1e-5, activation, 0.2)
    found = (y.detach(), *torch.autograd.grad(y, ours, g))

    exact = [t.double().requires_grad_() for t in (x, w, b)]
    z = F.batch_norm(exact[0], None, None, exact[1], exact[2], True, 0.0, 1e-5)
    right = z if activation is None else z.relu() if activation == "relu" else F.leaky_relu(z, 0.2)
    away = z.detach().abs() > 1e-4  # near the kink rounding decides the side
    rights = (right.detach(), *torch.autograd.grad(right, exact, g.double()))
    for one, other in zip(found, rights, strict=True):
        keep = away if one.ndim == 4 else torch.ones_like(other, dtype=torch.bool)
        assert ((one - other).abs() * keep).max() / other.abs().max() < 5e-6
    torch.testing.assert_close(
        moments.mean.double() + moments.low, x.double().mean((0, 2, 3)), rtol=1e-12 + 1e-7 * (offset == 0), atol=1e-5
    )
    torch.testing.assert_close(moments.variance().double(), x.double().var((0, 2, 3), correction=0), rtol=1e-5, atol=0)
