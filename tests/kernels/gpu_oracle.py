"""What the GPU kernels are held against: the definition in float64, and errors in units of float32.

Where there is no GPU the kernels run under Triton's interpreter. It is switched on for the whole process, and before
Triton is first imported: so import this module first.
"""

import os
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = DEVICE.type == "cpu"
if INTERPRETED and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"

EPS = 1e-3
SLOPE = 0.1
NONE, RELU, LEAKY = 0, 1, 2
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # half a unit in the last place


@dataclass
class Case:
    """Arguments of the forward and the gradient of its output, never with weight 1 and bias 0."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    activation: int
    residual: Tensor | None
    g: Tensor

    def forward(self, gpu, running=None):
        return gpu.forward(self.x, self.weight, self.bias, EPS, self.activation, SLOPE, self.residual, running)

    def backward(self, gpu, saved, wanted=(True, True, True, True)):
        settings = self.activation, SLOPE, self.residual, wanted
        return gpu.backward(self.g, self.x, self.weight, self.bias, saved, *settings)


def make(
    shape,
    *,
    last=False,
    dtype=torch.float32,
    offset=0.0,
    activation=RELU,
    residual=True,
    weight=True,
    bias=True,
    seed=0,
    parameters=torch.float32,
):
    made = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=made)

    def like_x(scale, shift):
        t = (normal(*shape) * scale + shift).to(DEVICE, dtype)
        # Channels after all else in memory, which is channels_last for images.
        return t.movedim(1, -1).contiguous().movedim(-1, 1) if last else t

    spread = 1 + normal(1, shape[1], *[1] * (len(shape) - 2)).abs()
    return Case(
        like_x(spread, offset),
        normal(shape[1]).to(DEVICE, parameters) if weight else None,
        normal(shape[1]).to(DEVICE, parameters) if bias else None,
        activation,
        like_x(1, 0) if residual else None,
        like_x(1, 0.3),
    )


def reference(case, y):
    """Output and gradients by the definition, in float64; and for each the size that its errors are measured by.

    Where the activation's input is within rounding of zero either side is right, and ``y`` says which was taken.
    """
    given = [None if t is None else t.detach().double().requires_grad_() for t in leaves(case)]
    x, weight, bias, residual = given
    axes = (0, *range(2, x.ndim))
    view = [1, -1, *[1] * (x.ndim - 2)]
    mean = x.mean(axes, keepdim=True)
    var = (x - mean).square().mean(axes, keepdim=True)
    xhat = (x - mean) / (var + EPS).sqrt()
    z = xhat if weight is None else xhat * weight.view(view)
    z = z if bias is None else z + bias.view(view)
    scale = z.detach().abs().amax(axes, keepdim=True) + (0 if bias is None else bias.detach().view(view).abs())
    if residual is not None:
        z = z + residual
        scale = scale + residual.detach().abs().amax(axes, keepdim=True)
    if case.activation == NONE:
        out = z
    else:
        near = z.detach().abs() <= 1e-5 * scale
        positive = torch.where(near, y.double() > 0, z.detach() > 0)
        out = torch.where(positive, z, z * (SLOPE if case.activation == LEAKY else 0.0))
    g = case.g.double()
    found = iter(torch.autograd.grad(out, [t for t in given if t is not None], g))
    gradients = [None if t is None else next(found) for t in given]
    a = (1 if weight is None else weight.detach().view(view).abs()) / (var.detach() + EPS).sqrt()
    h = xhat.detach().abs()
    largest = g.abs().amax(axes, keepdim=True)
    # A mean that is rounded moves all normalized values together, by a unit of the largest. The gain's gradient feels
    # that by the sum of what the activation passes, however small the values are where the gradient is large.
    slope = SLOPE if case.activation == LEAKY else 0.0
    passed = g if case.activation == NONE else g * torch.where(positive, 1.0, slope)
    of_gain = (g.abs() * h).sum(axes) + passed.sum(axes).abs() * h.amax(axes)
    sizes = [a * largest * (1 + h.amax(axes, keepdim=True)), of_gain, g.abs().sum(axes), largest]
    return [out.detach(), *gradients], [scale, *sizes], mean.flatten().detach(), var.flatten().detach()


def leaves(case):
    return case.x, case.weight, case.bias, case.residual


def errors(case, y, gradients):
    """Return the largest errors of output and gradients, in float32's half units of what they are measured by.

    What is stored in a narrower type is allowed its own rounding, which Triton's interpreter does toward zero.
    """
    wanted, sizes, _, _ = reference(case, y)
    worst = []
    for got, want, size in zip([y, *gradients], wanted, sizes, strict=True):
        if want is None:
            assert got is None
            worst.append(0.0)
            continue
        assert got.shape == want.shape
        rounding = 0.0
        if got.dtype != torch.float32:
            tiny = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
            rounding = (1 + INTERPRETED) * (UNIT[got.dtype] * want.abs() + tiny) * 1.01
        off = ((got.double() - want).abs() - rounding).clamp(min=0) / (size.clamp(min=1e-30) * UNIT[torch.float32])
        worst.append(float(off.max()))
    return worst
