"""What the tests of the CPU kernel hold it against: inputs, the formula in float64, and the kernel by the door."""

import torch
from torch.nn import functional as F

from normscope import ops

EPS = 1e-5
LAYOUTS = ("contiguous", "channels_last", "unaligned", "strided")


def lay_out(x, layout):
    if layout == "channels_last" and x.ndim > 2:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "unaligned":  # one element past what an allocation begins with
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    if layout == "strided":
        return torch.stack([x, x], -1)[..., 0]
    return x.contiguous()


def draw(shape, dtype=torch.float32, offset=0.0, layout="contiguous", seed=0):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=source, dtype=torch.float64) * 1.7 + offset
    w, b = torch.rand(shape[1], generator=source) + 0.4, torch.randn(shape[1], generator=source)
    w[0] *= -1
    g = torch.randn(shape, generator=source)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return lay_out(x.to(dtype), layout), w.to(wide), b.to(wide), lay_out(g.to(dtype), layout)


def written_out(x, w, b, g, activation, slope=0.2):
    """Output and gradients in float64, by autograd of the formula."""
    x, w, b = (t.detach().double().requires_grad_() for t in (x, w, b))
    axes, by = (0, *range(2, x.ndim)), (-1, *(1,) * (x.ndim - 2))
    centred = x - x.mean(axes).view(by)
    z = centred * (centred.square().mean(axes) + EPS).rsqrt().view(by) * w.view(by) + b.view(by)
    y = z if activation is None else z.relu() if activation == "relu" else F.leaky_relu(z, slope)
    return y.detach(), *torch.autograd.grad(y, (x, w, b), g.double())


def by_kernel(x, w, b, g, activation, slope=0.2, running=(None, None)):
    x, w, b = (t.detach().requires_grad_() for t in (x, w, b))
    with ops.using("kernel"):
        assert ops.explain(x, w, b).way == "kernel"
        y = ops.batch_norm(
            x,
            w,
            b,
            eps=EPS,
            running_mean=running[0],
            running_var=running[1],
            activation=activation,
            negative_slope=slope,
        )
        return y.detach(), *torch.autograd.grad(y, (x, w, b), g)


def errors(found, right):
    return [
        float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-300)) for a, b in zip(found, right, strict=True)
    ]


def far_from_kinks(x, w, b):
    """Where rounding cannot decide the side of the activation's kink: ``(N, C, *)`` of truth values."""
    z = written_out(x, w, b, torch.zeros_like(x), None)[0]
    return z.abs() > (1e-3 if x.dtype == torch.bfloat16 else 1e-5) * (1 + z.abs().max())


def off_the_kinks(found, right, x, w, b, activation):
    """Leave out of the input's gradient elements so near a kink that rounding decides the side."""
    if activation is None:
        return found, right
    keep = far_from_kinks(x, w, b)
    return (found[0], found[1] * keep, *found[2:]), (right[0], right[1] * keep, *right[2:])
