"""Compile the kernels for a GPU that need not be there, and print what came out: run as a program by its test.

Triton's interpreter takes much that its compiler refuses; the compiler needs no GPU.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from normscope.kernels.gpu import _backward, _forward, _launch, _plan

LIKE_X = ("x", "y", "g", "residual", "dx", "dresidual")
FLOATS = ("slope", "inverse", "unbias", "eps", "share")
OPTIONS = {
    "ACTIVATION": 2,
    "HAS_WEIGHT": True,
    "HAS_BIAS": True,
    "HAS_RESIDUAL": True,
    "TRACK": True,
    "WRITE_X": True,
    "WRITE_RESIDUAL": True,
}
NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def signature(kernel, dtype, constants):
    annotated = [parameter.name for parameter in kernel.params if parameter.is_constexpr]
    types = {}
    for name in kernel.arg_names:
        if name in annotated:
            types[name] = "constexpr"
        elif name in LIKE_X:
            types[name] = NAMES[dtype]
        elif name in FLOATS:
            types[name] = "fp32"
        elif name in ("weight", "bias", "saved", "partial", "sums", "running_mean", "running_var"):
            types[name] = "*fp32"
        else:
            types[name] = "i32"
    aligned = {(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n, t in types.items() if t.startswith("*")}
    return ASTSource(kernel, types, {name: constants[name] for name in annotated}, aligned)


def build(kernel, dtype, constants, capability, where):
    options = {name: value for name, value in constants.items() if name in ("num_warps", "enable_fp_fusion")}
    made = triton.compile(
        signature(kernel, dtype, constants), target=GPUTarget("cuda", capability, 32), options=options
    )
    said = {"kernel": kernel.__name__, "vectors": ".v4.b32" in made.asm["ptx"]}
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if tool.exists():
        cubin = where / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        usage = subprocess.run(
            [tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
        fields = dict(word.split(":") for word in usage.split() if word.count(":") == 1 and word.split(":")[1])
        said |= {"registers": int(fields["REG"]), "spilled": int(fields["STACK"]) + int(fields["LOCAL"])}
    return said


def main(capability, where):
    found = []
    for shape, last, dtype in (
        ((64, 256, 56, 56), False, torch.bfloat16),
        ((64, 256, 28, 28), True, torch.float32),
        ((64, 1024, 14, 14), False, torch.float32),
        ((256, 128), True, torch.float16),
    ):
        x = torch.empty((shape[0], *shape[2:], shape[1]), dtype=dtype, device="meta").movedim(-1, 1)
        p = _plan.plan(x if last else torch.empty(shape, dtype=dtype, device="meta"), _plan.Limits(processors=132))
        if p.fused:
            kernels = [_forward.fused_forward, _backward.fused_backward]
        else:
            kernels = [_forward.partial_moments, _forward.apply, _backward.partial_gradients, _backward.apply_backward]
        found += [build(kernel, dtype, OPTIONS | _launch._blocks(p), capability, where) for kernel in kernels]
    merges = _forward.merge_moments, _backward.merge_gradients
    found += [build(kernel, torch.float32, OPTIONS | _launch._MERGE, capability, where) for kernel in merges]
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
