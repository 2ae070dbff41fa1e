"""Compile the kernels as they are launched, for a GPU that need not be there; print what came out. Its test runs it.

Triton's interpreter takes much that its compiler refuses, and the compiler needs no GPU: a stand-in for the driver says
which one to compile for, and every launch ends once there is machine code.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from normscope.kernels import gpu

WIDE = re.compile(r"ld\.global\S*\.v[24]\.b32")
SHAPES = [
    ((2, 64, 112, 112), False, torch.bfloat16),
    ((8, 64, 56, 56), False, torch.float32),
    ((9, 256, 56, 56), True, torch.float32),
    ((4, 64, 28, 28), True, torch.float32),
    ((10, 128, 40, 40), True, torch.bfloat16),
    ((64, 64, 14, 14), False, torch.float32),
    ((60, 96, 14, 14), False, torch.float32),
    ((60, 96, 14, 14), False, torch.float16),
    ((32, 512, 7, 7), False, torch.float32),
    ((256, 128), False, torch.float32),
]


class Driver:
    """What a launch asks of a driver before it starts anything."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def usage(cubin, where):
    """Registers and bytes spilled, if this Triton brings the tool that tells."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        return {}
    file = where / "kernel.cubin"
    file.write_bytes(cubin)
    said = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True).stdout
    fields = dict(word.split(":") for word in said.split() if word.count(":") == 1 and word.split(":")[1])
    return {"registers": int(fields["REG"]), "spilled": int(fields["STACK"]) + int(fields["LOCAL"])}


def main(capability, where):
    driver.set_active(Driver(capability))
    compiled = {}
    run = JITFunction.run

    def compile_only(self, *args, **options):
        made = run(self, *args, **options | {"warmup": True})
        compiled.setdefault(made.hash, (self.fn.__name__, made))
        return made

    JITFunction.run = compile_only
    for shape, last, dtype in SHAPES:
        x = torch.ones(shape, dtype=dtype)
        x = x.to(memory_format=torch.channels_last) if last else x
        weight, bias, mean, var = torch.ones(4, shape[1]).unbind()
        for activation, residual in ((0, None), (1, x)) if shape[0] == 2 else ((1, None),):
            settings = activation, 0.1, residual
            _, saved = gpu.forward(x, weight, bias, 1e-5, *settings, (mean, var, 0.1))
            gpu.backward(x, x, weight, bias, saved, *settings, (True,) * 4)
    found = [
        {"kernel": name, "vectors": WIDE.search(made.asm["ptx"]) is not None} | usage(made.asm["cubin"], where)
        for name, made in compiled.values()
    ]
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
