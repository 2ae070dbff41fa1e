"""How many units in the last place batch norm is off, ours beside torch's, against float64.

    python benchmarks/accuracy.py [OUT]

Writes a table to ``benchmarks/results/accuracy.md``. Nothing here is timed, so the load of the machine does not matter.
"""

import math
import platform
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from normscope import layers
from normscope.records import provenance

OFFSETS = (0.0, 1e2, 1e4, 1e6)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = {
    "(4096, 64)": ("BatchNorm1d", (4096, 64), torch.contiguous_format),
    "(64, 32, 64)": ("BatchNorm1d", (64, 32, 64), torch.contiguous_format),
    "(32, 32, 28, 28)": ("BatchNorm2d", (32, 32, 28, 28), torch.contiguous_format),
    "(32, 32, 28, 28) channels-last": ("BatchNorm2d", (32, 32, 28, 28), torch.channels_last),
    "(8, 16, 8, 14, 14)": ("BatchNorm3d", (8, 16, 8, 14, 14), torch.contiguous_format),
    "(8, 16, 8, 14, 14) channels-last": ("BatchNorm3d", (8, 16, 8, 14, 14), torch.channels_last_3d),
}


def results(kind, x, g, weight, bias):
    """Run one training forward and backward; return output, gradients and the running statistics of this batch."""
    parameters = weight.dtype
    layer = kind(x.shape[1], momentum=1.0, dtype=parameters)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(leaf)
    grads = torch.autograd.grad(y, (leaf, layer.weight), g.to(y.dtype))
    return [t.detach().double() for t in (y, *grads, layer.running_mean, layer.running_var)]


def ulps(found, right, dtype):
    """The largest error, in units in the last place of the largest value."""
    off = ((found - right).abs().max() / right.abs().max()).item() / torch.finfo(dtype).eps
    return "not finite" if not math.isfinite(off) else f"{off:.2g}" if off < 1e4 else f"{off:.0e}"


def row(name, shape, format, dtype, offset):
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, bias = torch.randn(2, shape[1], generator=generator, dtype=torch.float64)
    x = (offset + x).to(dtype).contiguous(memory_format=format)
    g = (g + 0.3).to(dtype).contiguous(memory_format=format)
    if offset * torch.finfo(dtype).eps > 0.5 or not x.isfinite().all():
        return None  # the type itself does not tell these values apart
    weight, bias = weight.float(), bias.float()  # as mixed precision has it
    # The mean has an offset to be right about, and its grid in float32 is what it is: compared in full, as the others.
    right = results(getattr(torch.nn, name), x.double(), g.double(), weight.double(), bias.double())
    both = [results(getattr(room, name), x, g, weight, bias) for room in (layers, torch.nn)]
    kinds = (dtype, dtype, torch.float32, torch.float32, torch.float32)
    return [
        f"{ulps(ours, value, kind)} / {ulps(theirs, value, kind)}"
        for ours, theirs, value, kind in zip(*both, right, kinds, strict=True)
    ]


def table():
    lines = ["| input | type | offset | y | dx | dweight | running mean | running variance |", "|---" * 8 + "|"]
    for label, (name, shape, format) in LAYOUTS.items():
        for dtype in DTYPES:
            for offset in OFFSETS:
                cells = row(name, shape, format, dtype, offset)
                if cells:
                    kind = str(dtype).removeprefix("torch.")
                    lines.append(f"| {label} | {kind} | {offset:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def far_first_value():
    """A first value far from all others: what a shift by the first value is misled by."""
    x = torch.randn(4096, 3, generator=torch.Generator().manual_seed(0))
    x[0] = 1e6
    right = F.batch_norm(x.double(), None, None, training=True)
    ours, theirs = (kind(3)(x).double() for kind in (layers.BatchNorm1d, torch.nn.BatchNorm1d))
    return ulps(ours, right, torch.float32), ulps(theirs, right, torch.float32)


def main(out="benchmarks/results/accuracy.md"):
    torch.set_num_threads(1)
    facts = provenance.collect()
    cpu = facts.get("cpu") or facts.get("cpu_model") or platform.processor()
    ours, theirs = far_first_value()
    text = f"""# Accuracy of batch norm, ours / torch's

Largest error against float64, in units in the last place of the largest value (of the input's type for y and dx, of
float32 for the rest): *ours / torch's*. Input offset + randn rounded to its type, gain and shift drawn and in float32,
gradient .3 + randn, momentum 1. Offsets that a type cannot tell apart from offset + 1/2 are left out.
The running mean at an offset of 1e6 lies on a grid of .06 whoever computes it.

Made by `python benchmarks/accuracy.py` with torch {torch.__version__} on one thread of: {cpu}.

{table()}

4095 values of randn after a first one of 1e6, (4096, 3) in float32: y is off by {ours} / {theirs}.
"""
    Path(out).write_text(text)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
